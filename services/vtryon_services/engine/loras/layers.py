"""LoRAs in a forward of several rows: the base layer once, the low-rank part for each row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear

from vtryon_services.engine.loras.files import LoadedLora, LowRank


class _Active(NamedTuple):
    """A LoRA in the forward under way: rows that it applies to, and their strengths.

    Shapes:
        rows, strengths: (rows that it applies to,).
    """

    rows: torch.Tensor
    strengths: torch.Tensor


class LoraLayers:
    """The LoRAs of a transformer, applied by hooks behind its linear layers.

    The weights are not changed, so that rows with other LoRAs, other strengths or none share a
    forward. Belongs to the thread that runs the transformer.
    """

    def __init__(self, transformer: nn.Module, loras: Sequence[LoadedLora]) -> None:
        self._active: dict[str, _Active] = {}
        self._rows = 0
        additions: dict[str, dict[str, LowRank]] = defaultdict(dict)
        for lora in loras:
            for layer, low_rank in lora.layers.items():
                additions[layer][lora.name] = low_rank
        for layer, own in additions.items():
            transformer.get_submodule(layer).register_forward_hook(partial(self._add, own))

    def select(self, rows: Sequence[Mapping[str, float]], device: torch.device) -> None:
        """Choose the LoRAs of the next forward: for each row, strengths by name."""
        chosen: dict[str, dict[int, float]] = defaultdict(dict)
        for number, strengths in enumerate(rows):
            for name, strength in strengths.items():
                chosen[name][number] = strength
        self._rows = len(rows)
        self._active = {
            name: _Active(
                torch.tensor(list(own), device=device),
                torch.tensor(list(own.values()), device=device),
            )
            for name, own in chosen.items()
        }

    def _add(
        self,
        additions: Mapping[str, LowRank],
        _layer: nn.Module,
        inputs: tuple[torch.Tensor, ...],
        output: torch.Tensor,
    ) -> torch.Tensor:
        for name, active in self._active.items():
            if (low_rank := additions.get(name)) is not None:
                rows, strengths = self._of_input(active, inputs[0])
                low = linear(inputs[0].index_select(0, rows), low_rank.down)
                scaled = low * strengths.to(low.dtype).view(-1, *[1] * (low.dim() - 1))
                output.index_add_(0, rows, linear(scaled, low_rank.up))
        return output

    def _of_input(self, active: _Active, given: torch.Tensor) -> _Active:
        """Repeat the rows where the layer's input has them twice, as `zero_cond_t` does."""
        times = given.shape[0] // self._rows
        if times == 1:
            return active
        starts = range(0, times * self._rows, self._rows)
        rows = torch.cat([active.rows + start for start in starts])
        return _Active(rows, active.strengths.repeat(times))
