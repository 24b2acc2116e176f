"""Settings of the latent encoder."""

from __future__ import annotations

from typing import ClassVar

from vtryon.types import Stage
from vtryon_services.runtime.settings import EncoderSettings


class LatentEncoderSettings(EncoderSettings):
    """Read from VTRYON_LATENT_ENCODER_… variables."""

    service: ClassVar[Stage] = Stage.LATENT_ENCODER

    listen: str = "127.0.0.1:50051"
