"""Rotary positions for a target, its references and the text, in two layouts."""

from __future__ import annotations

from functools import lru_cache

import torch

from vtryon.types import RopeLayout

Shape = tuple[int, int, int]


class Rope:
    """The rotary angles of every token: diffusers' QwenEmbedRope, and ComfyUI's layout.

    Source: "RoFormer", Su et al. 2021, eq. 34, theta 10000, on three axes (frame, row, column).
    """

    def __init__(self, axes: tuple[int, int, int], theta: int = 10000) -> None:
        self.axes = axes
        self.theta = theta
        self.table = lru_cache(maxsize=256)(self._table)

    def _table(
        self, shapes: tuple[Shape, ...], tokens: int, layout: RopeLayout, device: torch.device
    ) -> torch.Tensor:
        """Give cosines and sines of text tokens, then of the pictures' tokens; kept for later.

        Shapes:
            result: (text + picture tokens, 1, head width / 2, 2), float32.
        """
        pictures = [_grid(shape, index, layout) for index, shape in enumerate(shapes)]
        counted = shapes if layout is RopeLayout.DIFFUSERS else shapes[:1]
        start = max(max(height // 2, width // 2) for _, height, width in counted)
        text = torch.arange(start, start + tokens)[:, None].expand(-1, 3)
        return self._factors(torch.cat([text, *pictures]))[:, None].to(device)

    def _factors(self, positions: torch.Tensor) -> torch.Tensor:
        angles = [
            torch.outer(positions[:, axis], self._frequencies(width))
            for axis, width in enumerate(self.axes)
        ]
        angle = torch.cat(angles, dim=1)
        return torch.stack([angle.cos(), angle.sin()], dim=-1)

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
