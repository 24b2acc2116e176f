"""Rotary positions for a target, its references and the text, in two layouts."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from vtryon.types import RopeLayout

Shape = tuple[int, int, int]


class Rope(nn.Module):
    """Stands in for diffusers' QwenEmbedRope: same tables, and ComfyUI's layout besides.

    The first row's shapes count for all rows, so a forward takes rows of equal shapes.

    Source: "RoFormer", Su et al. 2021, eq. 34, theta 10000, on three axes (frame, row, column).
    """

    def __init__(self, axes: tuple[int, int, int], theta: int = 10000) -> None:
        super().__init__()
        self.axes = axes
        self.theta = theta
        self.layout = RopeLayout.DIFFUSERS
        self._tables = lru_cache(maxsize=64)(self._compute)

    def forward(
        self,
        video_fhw: list[list[Shape]],
        device: torch.device | None = None,
        max_txt_seq_len: int | torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the factors of picture tokens and of text tokens.

        Shapes:
            result: (picture tokens, head width / 2) and (text tokens, head width / 2), complex64.
        """
        shapes = tuple((frame, height, width) for frame, height, width in video_fhw[0])
        return self._tables(shapes, int(max_txt_seq_len or 0), self.layout, device)

    def _compute(
        self, shapes: tuple[Shape, ...], tokens: int, layout: RopeLayout, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = [
            self._factors(_grid(shape, index, layout)) for index, shape in enumerate(shapes)
        ]
        counted = shapes if layout is RopeLayout.DIFFUSERS else shapes[:1]
        start = max(max(height // 2, width // 2) for _, height, width in counted)
        text = torch.arange(start, start + tokens)[:, None].expand(-1, 3)
        return torch.cat(pictures).to(device), self._factors(text).to(device)

    def _factors(self, positions: torch.Tensor) -> torch.Tensor:
        angles = [
            torch.outer(positions[:, axis], self._frequencies(width))
            for axis, width in enumerate(self.axes)
        ]
        angle = torch.cat(angles, dim=1)
        return torch.polar(torch.ones_like(angle), angle)

    def _frequencies(self, width: int) -> torch.Tensor:
        return 1.0 / torch.pow(self.theta, torch.arange(0, width, 2).float().div(width))


def _grid(shape: Shape, index: int, layout: RopeLayout) -> torch.Tensor:
    """(tokens, 3) positions of one picture: frames count from `index`, rows and columns centred."""
    frames, height, width = shape
    axes = (
        torch.arange(index, index + frames),
        _centred(height, layout),
        _centred(width, layout),
    )
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def _centred(count: int, layout: RopeLayout) -> torch.Tensor:
    first = count // 2 - count if layout is RopeLayout.DIFFUSERS else -(count // 2)
    return torch.arange(first, first + count)
