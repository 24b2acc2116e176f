"""Stage four: latents to a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.still_vae import StillVae


class Decoder:
    """The VAE's decoder."""

    def __init__(self, vae: StillVae, max_target_area: int, digest: str) -> None:
        self._vae = vae
        self.channels = vae.channels
        self.max_target_area = max_target_area
        self.digest = digest

    @classmethod
    def load(cls, checkpoint: Checkpoint, placement: Placement) -> Decoder:
        """Load `vae/`."""
        vae = StillVae.load(checkpoint, placement)
        return cls(vae, checkpoint.geometry.max_target_area, checkpoint.digest("vae"))

    def decode(self, latents: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Decode latents of one size.

        Shapes:
            latents: (channels, height / 8, width / 8) each, float32, normalised.
            result: (3, height, width) each, −1 to 1; `fitting.to_picture` makes pictures of them.
        """
        return self._vae.decode(torch.stack(list(latents))).unbind()
