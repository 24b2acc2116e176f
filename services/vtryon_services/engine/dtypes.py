"""Names of element types; without torch, for commands."""

from typing import Literal

DtypeName = Literal["fp32", "bf16", "fp16"]
