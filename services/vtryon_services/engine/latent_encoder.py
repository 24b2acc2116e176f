"""Stage one: pictures to latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image

from vtryon.events import Fit
from vtryon.types import Stage
from vtryon_services.engine import fitting
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.families.family import Family
from vtryon_services.engine.image_vae import Half, ImageVae
from vtryon_services.engine.numerics import Resolved
from vtryon_services.engine.outputs import check_output
from vtryon_services.engine.placement import Placement


class Fitted(NamedTuple):
    """A picture brought to size, (3, height, width), −1 to 1, and how."""

    pixels: torch.Tensor
    fit: Fit


class VaeEncoder:
    """The VAE's encoder, and the size of references."""

    def __init__(self, vae: ImageVae, family: Family, digest: str) -> None:
        self._vae = vae
        self.family = family
        self.digest = digest

    @classmethod
    def load(cls, checkpoint: Checkpoint, placement: Placement) -> VaeEncoder:
        """Load the encoder's half of `vae/`."""
        vae = ImageVae.load(checkpoint, placement, half=Half.ENCODER)
        return cls(vae, checkpoint.family, checkpoint.digest(Stage.LATENT_ENCODER))

    def fit(self, picture: Image.Image, numerics: Resolved) -> Fitted:
        """Bring a picture to size."""
        fitted = self.family.fit_reference(picture, numerics.resize)
        fit = fitting.describe_fit(picture, fitted, self.family.geometry)
        return Fitted(fitting.to_tensor(fitted), self.family.with_note(fit, numerics.resize))

    def encode(self, pixels: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Encode pictures of one size.

        Shapes:
            result: (channels, height / 8, width / 8) each, float32, normalised.

        Raises:
            StageError: the VAE gives NaN.
        """
        latents = self._vae.encode(torch.stack(list(pixels)))
        check_output(latents, "VAE's encoder")
        return latents.unbind()
