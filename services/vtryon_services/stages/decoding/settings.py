"""Settings of the decoder."""

from __future__ import annotations

from typing import ClassVar

from vtryon.types import Stage
from vtryon_services.runtime.settings import StageSettings


class DecodingSettings(StageSettings):
    """Read from VTRYON_DECODING_… variables."""

    service: ClassVar[Stage] = Stage.DECODING

    listen: str = "127.0.0.1:50054"
