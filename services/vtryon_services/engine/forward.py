"""Rows that differ in size and prompt, through one transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from diffusers import QwenImageTransformer2DModel
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from vtryon.types import RopeLayout
from vtryon_services.engine.loras.layers import LoraLayers
from vtryon_services.engine.rope import Rope, Shape

# Rows go together as long as padding adds no more than this share of tokens. Measured by
# loadtests/vtryon_loadtests/padding.py: see docs/decisions.
PADDING = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """One prediction that is wanted.

    Attributes:
        loras: strengths of the LoRAs that apply, by name.

    Shapes:
        target: (target tokens, 64), float32; references: (reference tokens, 64).
        embeddings: (text tokens, width).
    """

    target: torch.Tensor
    references: torch.Tensor
    embeddings: torch.Tensor
    shapes: tuple[Shape, ...]
    sigma: float
    layout: RopeLayout
    loras: Mapping[str, float] = field(default_factory=dict)

    @property
    def pictures(self) -> int:
        """How many picture tokens there are."""
        return len(self.target) + len(self.references)

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return self.pictures + len(self.embeddings)


class ForwardBatch(NamedTuple):
    """Which rows go through the transformer together, and how many tokens each becomes."""

    rows: tuple[int, ...]
    text: int
    pictures: int

    @property
    def tokens(self) -> int:
        """How many tokens the forward computes, padding included."""
        return len(self.rows) * (self.text + self.pictures)


def divide(rows: Sequence[Prediction], limit: int, padding: float = PADDING) -> list[ForwardBatch]:
    """Divide rows into batches of at most `limit`, from the longest, by the padding they cost."""
    order = sorted(range(len(rows)), key=lambda index: (-rows[index].pictures, index))
    batches: list[ForwardBatch] = []
    for index in order:
        row = rows[index]
        if batches and len(batches[-1].rows) < limit:
            last = batches[-1]
            joined = ForwardBatch(
                (*last.rows, index), max(last.text, len(row.embeddings)), last.pictures
            )
            own = sum(rows[other].tokens for other in joined.rows)
            if joined.tokens <= (1 + padding) * own:
                batches[-1] = joined
                continue
        batches.append(ForwardBatch((index,), len(row.embeddings), row.pictures))
    return batches


class Forward:
    """The transformer's forward for a batch of rows."""

    def __init__(
        self, transformer: QwenImageTransformer2DModel, loras: LoraLayers | None = None
    ) -> None:
        self._model = transformer
        self._loras = loras
        self._rope = Rope(tuple(transformer.config.axes_dims_rope))

    def __call__(self, rows: Sequence[Prediction], batch: ForwardBatch) -> list[torch.Tensor]:
        """Predict the velocities of a batch's rows.

        Shapes:
            result: (target tokens, 64) for each row, float32.
        """
        chosen = [rows[index] for index in batch.rows]
        model, dtype = self._model, self._model.dtype
        tokens = [torch.cat([row.target.to(dtype), row.references]) for row in chosen]
        sigmas = torch.tensor([row.sigma for row in chosen], dtype=dtype)
        rotary, mask = self._positions(chosen, batch)
        if self._loras is not None:
            self._loras.select([row.loras for row in chosen], model.device)
        predicted = model(
            hidden_states=_stack(tokens),
            timestep=sigmas.to(model.device, non_blocking=True),
            encoder_hidden_states=_stack([row.embeddings for row in chosen]),
            encoder_hidden_states_mask=None,
            img_shapes=[_filled(row, batch.pictures) for row in chosen],
            attention_kwargs={"rotary": rotary, "mask": mask},
            return_dict=False,
        )[0]
        return [one[: len(row.target)].float() for one, row in zip(predicted, chosen, strict=True)]

    def _positions(
        self, rows: Sequence[Prediction], batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        device = self._model.device
        tables = [
            self._rope.table(row.shapes, len(row.embeddings), row.layout, device) for row in rows
        ]
        if all(table is tables[0] for table in tables):
            return tables[0][None], None
        spread, counts = [], []
        for row, table in zip(rows, tables, strict=True):
            text, pictures = table.split([len(row.embeddings), row.pictures])
            spread.append(torch.cat([_fill(text, batch.text), _fill(pictures, batch.pictures)]))
            counts.append((len(row.embeddings), row.pictures))
        lengths = torch.tensor(counts, device=device)
        text_counts = torch.arange(batch.text, device=device) < lengths[:, :1]
        picture_counts = torch.arange(batch.pictures, device=device) < lengths[:, 1:]
        mask = torch.cat([text_counts, picture_counts], dim=1)[:, None, None]
        return torch.stack(spread), mask


def _stack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return pad_sequence(list(parts), batch_first=True)


def _fill(table: torch.Tensor, length: int) -> torch.Tensor:
    return pad(table, (0, 0, 0, 0, 0, 0, 0, length - len(table)))


def _filled(row: Prediction, pictures: int) -> list[Shape]:
    """A row's shapes, and one that stands for the padding: the model counts their tokens."""
    missing = pictures - row.pictures
    return [*row.shapes, (1, 1, missing)] if missing else list(row.shapes)
