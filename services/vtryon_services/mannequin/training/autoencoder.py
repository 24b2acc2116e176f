"""Training the VAE, whole or its decoder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage
from PIL import Image
from torch import nn
from torch.nn import functional

from vtryon_services.engine.image_vae import flatten_, restore
from vtryon_services.mannequin.training.loop import TrainingPlan, split_optimizers
from vtryon_services.mannequin.training.networks import CHANNELS
from vtryon_services.mannequin.triples import HELD_OUT, draw_pictures, draw_triples, to_picture

_CROP = 64
_CROPS = 2  # of each drawing
_FACES = 17  # half of the crops begin above this row, where the faces are
_NOISE = 0.05
_STATISTICS_EXAMPLES = 64


class VaeTask:
    """The VAE on drawings: crops, mirrored and recoloured, so that it learns edges, not scenes."""

    name = "vae"

    def __init__(
        self, vae: AutoencoderKLQwenImage, device: torch.device, crop: int = _CROP
    ) -> None:
        self._config = dict(vae.config)
        self._device = device
        self._crop = crop
        flatten_(vae)
        self.model: nn.Module = vae.requires_grad_(True).train().to(device)

    def optimizers(self, learning_rate: float) -> list[torch.optim.Optimizer]:
        """Make Muon for the blocks' kernels, AdamW for the rest."""
        return split_optimizers(self.model, learning_rate, 10 * learning_rate)

    def compile(self) -> None:
        """Compile encoder and decoder."""
        self.model.encoder.compile(dynamic=False)  # type: ignore[union-attr]
        self.model.decoder.compile(dynamic=False)  # type: ignore[union-attr]

    def loss(self, model: nn.Module, step: int, plan: TrainingPlan) -> torch.Tensor:
        """Give the error of a round trip: values, squares and edges, and a pull on the latents."""
        generator = torch.Generator().manual_seed(plan.seed + step)
        pixels = self._crops(step, plan, generator)
        mode = _mode(model, pixels)
        noise = torch.randn(mode.shape, generator=generator).to(self._device)
        return round_trip_error(_decode(model, mode + _NOISE * noise), pixels) + (
            1e-3 * mode.square().mean()
        )

    def _crops(self, step: int, plan: TrainingPlan, generator: torch.Generator) -> torch.Tensor:
        count = max(2, plan.batch // _CROPS)
        drawn = draw_pictures(count, plan.seed + step * plan.batch, self._device)
        crops = [self._crop_of(drawn * 2 - 1, generator) for _ in range(_CROPS)]
        return torch.cat(crops)

    def _crop_of(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        def toss(options: int) -> int:
            return int(torch.randint(options, (), generator=generator))

        room = [side - self._crop + 1 for side in pixels.shape[2:]]
        top, left = toss(room[0] if toss(2) else min(room[0], _FACES)), toss(room[1])
        pixels = pixels[:, :, top : top + self._crop, left : left + self._crop]
        if toss(2):
            pixels = pixels[:, torch.randperm(3, generator=generator)]
        if toss(2):
            pixels = pixels.flip(3)
        return -pixels if toss(4) == 0 else pixels

    @torch.no_grad()
    def grid(self, model: nn.Module) -> Sequence[Sequence[Image.Image]]:
        """Draw held-out truths above their round trips."""
        truth = draw_triples(8, HELD_OUT).truth
        drawn = _decode(model, _mode(model, truth.to(self._device) * 2 - 1)).cpu()
        again = (drawn / 2 + 0.5).clamp(0, 1)
        return [[to_picture(one) for one in truth], [to_picture(one) for one in again]]

    @torch.no_grad()
    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the VAE with its 3-D kernels, and the statistics of its latents."""
        triples = draw_triples(_STATISTICS_EXAMPLES, 0)
        pixels = torch.cat([triples.person, triples.garment, triples.truth]) * 2 - 1
        latents = torch.cat([_mode(model, part.to(self._device)) for part in pixels.split(16)])
        mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
        statistics = {
            "latents_mean": [round(value, 4) for value in mean.tolist()],
            "latents_std": [round(value, 4) for value in std.tolist()],
        }
        self._write(model, folder, statistics)

    def _write(self, model: nn.Module, folder: Path, changed: dict[str, list[float]]) -> None:
        known = {name: value for name, value in self._config.items() if not name.startswith("_")}
        vae = AutoencoderKLQwenImage(**{**known, **changed})
        restore(vae, model)
        vae.to(torch.float16).save_pretrained(folder)


class DecoderTask(VaeTask):
    """Final training of the decoder only: the latents stay those of the transformer."""

    name = "decoder"

    def __init__(
        self, vae: AutoencoderKLQwenImage, device: torch.device, crop: int = _CROP
    ) -> None:
        super().__init__(vae, device, crop)
        for part in (self.model.encoder, self.model.quant_conv):
            part.requires_grad_(False)

    def loss(self, model: nn.Module, step: int, plan: TrainingPlan) -> torch.Tensor:
        """Give the error of a round trip of whole drawings."""
        generator = torch.Generator().manual_seed(plan.seed + step)
        triples = draw_triples(plan.batch, plan.seed + step * plan.batch)
        pixels = (triples.truth if step % 2 else triples.person).to(self._device) * 2 - 1
        with torch.no_grad():
            mode = _mode(model, pixels)
        noise = torch.randn(mode.shape, generator=generator).to(self._device)
        return round_trip_error(_decode(model, mode + _NOISE * noise), pixels)

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the VAE; its statistics are those of its encoder, which did not change."""
        self._write(model, folder, {})


def round_trip_error(drawn: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Give values' absolute and squared error, and the absolute error of their differences."""
    error = drawn - pixels
    edges = error.diff(dim=3).abs().mean() + error.diff(dim=2).abs().mean()
    return functional.l1_loss(drawn, pixels) + 0.5 * error.square().mean() + 0.5 * edges


def _mode(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    moments: torch.Tensor = model.quant_conv(model.encoder(pixels.unsqueeze(2)))  # type: ignore[operator]
    return moments[:, :CHANNELS]


def _decode(model: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    frames: torch.Tensor = model.decoder(model.post_quant_conv(latents))  # type: ignore[operator]
    return frames[:, :, 0]
