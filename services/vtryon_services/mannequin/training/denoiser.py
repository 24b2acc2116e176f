"""Training the transformer: flow matching on encoded examples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel
from PIL import Image
from torch import nn
from torch.nn.functional import pad

from vtryon.types import RopeLayout
from vtryon_services.engine import latents as packing
from vtryon_services.engine.attention import install
from vtryon_services.engine.geometry import PreviewMap
from vtryon_services.engine.rope import Rope
from vtryon_services.mannequin.shapes import HEIGHT, WIDTH
from vtryon_services.mannequin.training.loop import TrainingPlan, split_optimizers
from vtryon_services.mannequin.training.pool import TOKENS, Pool

_ROWS, _COLUMNS = HEIGHT // 16, WIDTH // 16
_SHIRT_WEIGHT = 1.5
_SHORT = 48  # tokens of most prompts


class TransformerTask:
    """The transformer on a pool of encoded examples.

    Noise levels lean to 1 (a fifth are 1, the rest shifted by 3), where the picture is decided; the
    error counts more where a shirt is or was. A step's rows are all short prompts or all of any
    length, so that most steps carry little padding.

    Source: "Scaling Rectified Flow Transformers", Esser et al. 2024, eq. 23.
    """

    name = "transformer"

    def __init__(
        self,
        transformer: QwenImageTransformer2DModel,
        pool: Pool,
        preview: PreviewMap,
        device: torch.device,
    ) -> None:
        rope = Rope(tuple(transformer.config.axes_dims_rope))
        shapes = ((1, _ROWS, _COLUMNS),) * 3
        install(transformer)
        self.model: nn.Module = transformer.train().to(device)
        self._table = partial(rope.table, shapes, layout=RopeLayout.DIFFUSERS, device=device)
        self._pool = pool
        self._short = (pool.lengths <= _SHORT).nonzero().flatten()
        self._long = (pool.lengths > _SHORT).nonzero().flatten()
        self._preview = preview
        self._device = device

    def compile(self) -> None:
        """Compile the blocks, which share one graph."""
        for block in self.model.transformer_blocks:  # type: ignore[union-attr]
            block.compile(dynamic=False)

    def optimizers(self, learning_rate: float) -> list[torch.optim.Optimizer]:
        """Make Muon for the blocks' matrices, AdamW for the rest."""
        return split_optimizers(self.model, learning_rate, 10 * learning_rate)

    def loss(self, model: nn.Module, step: int, plan: TrainingPlan) -> torch.Tensor:
        """Give the weighted error of the velocity at random noise levels."""
        generator = torch.Generator().manual_seed(plan.seed + step)
        uniform = torch.rand(plan.batch, generator=generator)
        sigma = 3 * uniform / (1 + 2 * uniform)
        sigma[torch.rand(plan.batch, generator=generator) < 0.2] = 1.0
        batch = self._draw_batch(plan.batch, generator)
        noise = torch.randn(batch["target"].shape, generator=generator).to(self._device)
        level = sigma.to(self._device)
        noised = torch.lerp(batch["target"], noise, level[:, None, None])
        predicted = self._velocity(model, batch, noised, level)
        weight = 1 + _SHIRT_WEIGHT * batch["shirt"][:, :, None]
        return (weight * (predicted - (noise - batch["target"])).square()).mean()

    def _draw_batch(self, rows: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        share = len(self._short) / len(self._pool)
        short = float(torch.rand((), generator=generator)) < share
        among, tokens = (self._short, _SHORT) if short else (self._long, TOKENS)
        index = among[torch.randint(len(among), (rows,), generator=generator)]
        return self._pool.batch(index, tokens, self._device)

    def _velocity(
        self,
        model: nn.Module,
        batch: dict[str, torch.Tensor],
        noised: torch.Tensor,
        sigma: torch.Tensor,
    ) -> torch.Tensor:
        pictures = torch.cat([noised, batch["person"], batch["garment"]], dim=1)
        mask = pad(batch["counts"], (0, pictures.shape[1]), value=True)
        tokens = batch["text"].shape[1]
        predicted: torch.Tensor = model(
            hidden_states=pictures,
            timestep=sigma,
            encoder_hidden_states=batch["text"],
            img_shapes=[[(1, _ROWS, _COLUMNS)] * 3] * len(noised),
            attention_kwargs={"rotary": self._table(tokens)[None], "mask": mask[:, None, None]},
            return_dict=False,
        )[0]
        return predicted[:, : noised.shape[1]]

    @torch.no_grad()
    def grid(self, model: nn.Module) -> Sequence[Sequence[Image.Image]]:
        """Draw small pictures of one step from pure noise above those of the truth."""
        batch = self._pool.batch(torch.arange(0, len(self._pool), 97)[:8], TOKENS, self._device)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(batch["target"].shape, generator=generator).to(self._device)
        ones = torch.ones(len(noise), device=self._device)
        x0 = noise - self._velocity(model, batch, noise, ones)
        return [[self._small(one) for one in tokens] for tokens in (x0, batch["target"])]

    def _small(self, tokens: torch.Tensor) -> Image.Image:
        latents = packing.unpack(tokens, HEIGHT // 8, WIDTH // 8)
        return packing.preview(latents, self._preview, 0)

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the transformer."""
        fresh = QwenImageTransformer2DModel.from_config(model.config)
        fresh.load_state_dict(model.state_dict())
        fresh.to(torch.float16).save_pretrained(folder)
