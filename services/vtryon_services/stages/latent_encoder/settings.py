"""Settings of the latent encoder."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vtryon.catalog import CATALOG
from vtryon.types import Stage
from vtryon_services.runtime.settings import EncoderSettings


class LatentEncoderSettings(EncoderSettings):
    """Read from VTRYON_LATENT_ENCODER_… variables."""

    service: ClassVar[Stage] = Stage.LATENT_ENCODER

    listen: str = Field(
        default=CATALOG[Stage.LATENT_ENCODER].address,
        description="Address to serve on: host:port or unix:/path.",
    )
