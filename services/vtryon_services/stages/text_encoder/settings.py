"""Settings of the text encoder."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vtryon.types import Stage
from vtryon_services.runtime.settings import EncoderSettings


class TextEncoderSettings(EncoderSettings):
    """Read from VTRYON_TEXT_ENCODER_… variables."""

    service: ClassVar[Stage] = Stage.TEXT_ENCODER

    listen: str = Field(
        default="127.0.0.1:50052", description="Address to serve on: host:port or unix:/path."
    )
