"""Settings of the decoder."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vtryon.catalog import CATALOG
from vtryon.types import Stage
from vtryon_services.runtime.settings import StageSettings


class DecodingSettings(StageSettings):
    """Read from VTRYON_DECODING_… variables."""

    service: ClassVar[Stage] = Stage.DECODING

    listen: str = Field(
        default=CATALOG[Stage.DECODING].address,
        description="Address to serve on: host:port or unix:/path.",
    )
