"""Settings of the text encoder."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vtryon.catalog import CATALOG
from vtryon.types import Stage
from vtryon_services.runtime.settings import EncoderSettings


class TextEncoderSettings(EncoderSettings):
    """Read from VTRYON_TEXT_ENCODER_… variables."""

    service: ClassVar[Stage] = Stage.TEXT_ENCODER

    listen: str = Field(
        default=CATALOG[Stage.TEXT_ENCODER].address,
        description="Address to serve on: host:port or unix:/path.",
    )
