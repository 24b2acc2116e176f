"""Training the transformer: flow matching on encoded examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel
from PIL import Image
from torch import nn

from vtryon_services.engine import latents as packing
from vtryon_services.engine.geometry import PreviewMap
from vtryon_services.mannequin.shapes import HEIGHT, WIDTH
from vtryon_services.mannequin.training.loop import Plan, split_optimizers

_ROWS, _COLUMNS = HEIGHT // 16, WIDTH // 16
_SHIRT_WEIGHT = 1.5


class TransformerTask:
    """The transformer on a pool of encoded examples.

    Noise levels lean to 1 (a fifth are 1, the rest shifted by 3), where the picture is decided; the
    error counts more where a shirt is or was; a tenth of the prompts are dropped, so that guidance
    has something to push against.

    Source: "Scaling Rectified Flow Transformers", Esser et al. 2024, eq. 23; "Classifier-Free
    Diffusion Guidance", Ho and Salimans 2022, algorithm 1.
    """

    name = "transformer"

    def __init__(
        self,
        transformer: QwenImageTransformer2DModel,
        pool: dict[str, torch.Tensor],
        preview: PreviewMap,
        device: torch.device,
    ) -> None:
        self.model: nn.Module = transformer.train().to(device)
        self._pool = pool
        self._preview = preview
        self._device = device

    def optimizers(self, learning_rate: float) -> list[torch.optim.Optimizer]:
        """Make Muon for the blocks' matrices, AdamW for the rest."""
        return split_optimizers(self.model, learning_rate, 10 * learning_rate)

    def loss(self, model: nn.Module, step: int, plan: Plan) -> torch.Tensor:
        """Give the weighted error of the velocity at random noise levels."""
        generator = torch.Generator().manual_seed(plan.seed + step)
        count = len(self._pool["length"])
        index = torch.randint(count, (plan.batch,), generator=generator)
        uniform = torch.rand(plan.batch, generator=generator)
        sigma = 3 * uniform / (1 + 2 * uniform)
        sigma[torch.rand(plan.batch, generator=generator) < 0.2] = 1.0
        kept = torch.rand(plan.batch, generator=generator) >= 0.1
        batch = self._batch(index)
        noise = torch.randn(batch["target"].shape, generator=generator).to(self._device)
        level = sigma.to(self._device)
        noised = torch.lerp(batch["target"], noise, level[:, None, None])
        predicted = self._velocity(model, batch, noised, level, kept.to(self._device))
        weight = 1 + _SHIRT_WEIGHT * batch["shirt"][:, :, None]
        return (weight * (predicted - (noise - batch["target"])).square()).mean()

    def _batch(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        longest = int(self._pool["length"][index].max())
        batch = {name: part[index].to(self._device).float() for name, part in self._pool.items()}
        batch["text"] = batch["text"][:, :longest]
        return batch

    def _velocity(
        self,
        model: nn.Module,
        batch: dict[str, torch.Tensor],
        noised: torch.Tensor,
        sigma: torch.Tensor,
        kept: torch.Tensor,
    ) -> torch.Tensor:
        positions = torch.arange(batch["text"].shape[1], device=self._device)
        mask = positions < batch["length"][:, None]
        predicted: torch.Tensor = model(
            hidden_states=torch.cat([noised, batch["person"], batch["garment"]], dim=1),
            timestep=sigma,
            encoder_hidden_states=batch["text"] * kept[:, None, None],
            encoder_hidden_states_mask=None if mask.all() else mask,
            img_shapes=[[(1, _ROWS, _COLUMNS)] * 3] * len(noised),
            return_dict=False,
        )[0]
        return predicted[:, : noised.shape[1]]

    @torch.no_grad()
    def grid(self, model: nn.Module) -> Sequence[Sequence[Image.Image]]:
        """Draw small pictures of one step from pure noise above those of the truth."""
        batch = self._batch(torch.arange(min(8, len(self._pool["length"]))))
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(batch["target"].shape, generator=generator).to(self._device)
        ones = torch.ones(len(noise), device=self._device)
        x0 = noise - self._velocity(model, batch, noise, ones, ones)
        return [[self._small(one) for one in tokens] for tokens in (x0, batch["target"])]

    def _small(self, tokens: torch.Tensor) -> Image.Image:
        latents = packing.unpack(tokens, HEIGHT // 8, WIDTH // 8)
        return packing.preview(latents, self._preview, 0)

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the transformer."""
        fresh = QwenImageTransformer2DModel.from_config(model.config)
        fresh.load_state_dict(model.state_dict())
        fresh.to(torch.float16).save_pretrained(folder)
