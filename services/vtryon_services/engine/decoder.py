"""Stage four: latents to a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vtryon.types import Stage
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.image_vae import Half, ImageVae
from vtryon_services.engine.outputs import check_output
from vtryon_services.engine.placement import Placement


class Decoder:
    """The VAE's decoder."""

    def __init__(self, vae: ImageVae, max_target_area: int, digest: str) -> None:
        self._vae = vae
        self.channels = vae.channels
        self.max_target_area = max_target_area
        self.digest = digest

    @classmethod
    def load(cls, checkpoint: Checkpoint, placement: Placement) -> Decoder:
        """Load the decoder's half of `vae/`."""
        vae = ImageVae.load(checkpoint, placement, half=Half.DECODER)
        return cls(vae, checkpoint.geometry.max_target_area, checkpoint.digest(Stage.DECODING))

    def decode(self, latents: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Decode latents of one size.

        Shapes:
            latents: (channels, height / 8, width / 8) each, float32, normalised.
            result: (3, height, width) each, −1 to 1; `fitting.to_picture` makes pictures of them.

        Raises:
            StageError: the VAE gives NaN.
        """
        pixels = self._vae.decode(torch.stack(list(latents)))
        check_output(pixels, "VAE's decoder")
        return pixels.unbind()
