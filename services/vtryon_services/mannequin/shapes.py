"""Painting with signed distances, many pictures at once.

A distance is negative inside a shape and counts in pixels, so that edges come out smooth. Numbers
that differ from picture to picture are columns of shape (pictures, 1, 1), which broadcast against
the pixel grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

HEIGHT, WIDTH = 128, 96

Batch = TypeVar("Batch")


class Grid(NamedTuple):
    """Where the pixels are: (1, height, width) each, from the picture's top left corner."""

    x: Tensor
    y: Tensor


@lru_cache(maxsize=4)
def grid(device: torch.device) -> Grid:
    """Give the middles of the pixels."""
    across, down = torch.arange(WIDTH) + 0.5, torch.arange(HEIGHT) + 0.5
    y, x = torch.meshgrid(down, across, indexing="ij")
    return Grid(x[None].to(device), y[None].to(device))


class Dice:
    """Random columns and colours from one seed; the same on every device."""

    def __init__(self, count: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.count = count
        self.device = torch.device(device)
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> Tensor:
        """Give a column of numbers between two."""
        drawn = torch.rand((self.count, 1, 1), generator=self._generator)
        return (low + (high - low) * drawn).to(self.device)

    def choose(self, options: int) -> Tensor:
        """Give a column of whole numbers below `options`."""
        return torch.randint(options, (self.count, 1, 1), generator=self._generator).to(self.device)

    def weigh(self, weights: Sequence[float]) -> Tensor:
        """Give a column of indices, each as often as its weight says."""
        drawn = torch.multinomial(
            torch.tensor(weights), self.count, replacement=True, generator=self._generator
        )
        return drawn.view(-1, 1, 1).to(self.device)

    def chance(self, probability: float) -> Tensor:
        """Give a column of truths."""
        return self.uniform(0, 1) < probability

    def colour(self, palette: Tensor, spread: float) -> tuple[Tensor, Tensor]:
        """Pick palette colours and shift them a little: (pictures, 3), and which they were."""
        index = self.choose(len(palette)).flatten()
        shift = torch.randn((self.count, 3), generator=self._generator) * spread
        return (palette.to(self.device)[index] + shift.to(self.device)).clamp(0, 1), index

    def any_colour(self) -> Tensor:
        """Give (pictures, 3) colours from the whole cube."""
        return torch.rand((self.count, 3), generator=self._generator).to(self.device)


def take(batch: Batch, index: Tensor) -> Batch:
    """Pick rows of a batch's tensors, whatever dataclass or tuple of tensors it is."""
    if isinstance(batch, Tensor):
        return batch[index]  # type: ignore[return-value]
    if isinstance(batch, tuple):
        return type(batch)(*(take(part, index) for part in batch))
    parts = {field.name: take(getattr(batch, field.name), index) for field in fields(batch)}  # type: ignore[arg-type]
    return replace(batch, **parts)  # type: ignore[type-var]


class Canvas:
    """Pictures being painted, (pictures, 3, height, width), 0 to 1."""

    def __init__(self, ground: Tensor) -> None:
        self.pixels = ground.expand(-1, 3, HEIGHT, WIDTH).clone()

    def paint(self, colour: Tensor, cover: Tensor) -> None:
        """Lay a colour (pictures, 3) or texture (pictures, 3, height, width) over the picture."""
        texture = colour[:, :, None, None] if colour.dim() == 2 else colour
        alpha = cover[:, None]
        self.pixels = self.pixels * (1 - alpha) + texture * alpha


def palette(*colours: str) -> Tensor:
    """Read colours such as "cc2428" into (colours, 3), 0 to 1."""
    return torch.tensor([list(bytes.fromhex(colour)) for colour in colours]).float() / 255


def cover(distance: Tensor) -> Tensor:
    """How much of each pixel a shape covers, 0 to 1."""
    return (0.5 - distance).clamp(0, 1)


def capsule(x: Tensor, y: Tensor, start: Point, end: Point, radius: float | Tensor) -> Tensor:
    """Distance to a line with round ends."""
    (x0, y0), (x1, y1) = start, end
    dx, dy = x1 - x0, y1 - y0
    along = ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy + 1e-6)
    along = along.clamp(0, 1)
    return torch.hypot(x - x0 - along * dx, y - y0 - along * dy) - radius


def ellipse(x: Tensor, y: Tensor, radius_x: Tensor, radius_y: Tensor) -> Tensor:
    """Distance, about, to an ellipse around the origin."""
    return (torch.hypot(x / radius_x, y / radius_y) - 1) * torch.minimum(radius_x, radius_y)


def both(*distances: Tensor) -> Tensor:
    """Distance to the intersection of several shapes."""
    result = distances[0]
    for distance in distances[1:]:
        result = torch.maximum(result, distance)
    return result


def triangle_wave(t: Tensor) -> Tensor:
    """From 1 down to 0 and up again, once per unit."""
    return (t - torch.floor(t) - 0.5).abs() * 2


Point = tuple[Tensor, Tensor]
