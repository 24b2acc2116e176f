"""Shirts: their cloth, and how they look lying flat."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtryon_services.mannequin.shapes import (
    WIDTH,
    Canvas,
    Dice,
    X,
    Y,
    both,
    capsule,
    cover,
    palette,
    triangle_wave,
)

COLOUR_NAMES = (
    *("red", "orange", "yellow", "green", "teal", "blue", "navy"),
    *("purple", "pink", "white", "grey", "black", "brown", "beige"),
)
COLOURS = palette(
    *("cc2428", "ee7e1e", "f5d032", "34963e", "189696", "2e66d6", "1a225c"),
    *("7a34a0", "f082af", "f4f4f4", "8a8c92", "1e1e22", "704628", "d8c4a0"),
)
PATTERNS = ("plain", "striped", "vertical striped", "dotted", "checked", "logo", "two-tone")
_PATTERN_WEIGHTS = [0.25, 0.18, 0.13, 0.15, 0.12, 0.1, 0.07]
_FIRST_TORSO_PATTERN = PATTERNS.index("logo")  # from here on, sleeves are plain
NO_SLEEVES, SHORT_SLEEVES, LONG_SLEEVES = range(3)
ROUND_NECK, V_NECK = range(2)


@dataclass(frozen=True, slots=True)
class Shirts:
    """A batch of shirts.

    Shapes:
        ground, figure: (shirts, 3), the two colours; named: (shirts,), index of the ground's name
        or −1; the others are columns.
    """

    ground: Tensor
    figure: Tensor
    named: Tensor
    pattern: Tensor
    period: Tensor
    phase: Tensor
    sleeves: Tensor
    neck: Tensor

    def sleeve_cloth(self) -> Shirts:
        """Give the cloth of the sleeves: logos and two tones are the torso's alone."""
        plain = torch.zeros_like(self.pattern)
        pattern = torch.where(self.pattern >= _FIRST_TORSO_PATTERN, plain, self.pattern)
        return replace(self, pattern=pattern)


def draw_shirts(dice: Dice) -> Shirts:
    """Draw a batch of shirts, each with two colours that can be told apart."""
    ground, named = dice.colour(COLOURS, 0.04)
    figure, _ = dice.colour(COLOURS, 0.04)
    unnamed = dice.chance(0.25).flatten()
    ground = torch.where(unnamed[:, None], dice.any_colour(), ground)
    alike = (ground - figure).abs().sum(1) < 0.6
    opposite = (1 - ground.mean(1, keepdim=True)).round().expand(-1, 3) * 0.9 + 0.05
    return Shirts(
        ground=ground,
        figure=torch.where(alike[:, None], opposite, figure),
        named=torch.where(unnamed, torch.full_like(named, -1), named),
        pattern=dice.weigh(_PATTERN_WEIGHTS),
        period=dice.uniform(0.17, 0.30),
        phase=dice.uniform(0, 1),
        sleeves=dice.choose(3),
        neck=dice.choose(2),
    )


def cloth(shirts: Shirts, u: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    """Colour the cloth at (u, v), in shirt lengths across and down; `scale` is pixels per length.

    Shapes:
        u, v: (shirts, height, width); result: (shirts, 3, height, width).
    """
    period, phase = shirts.period, shirts.phase

    def stripes(t: Tensor) -> Tensor:
        return ((0.5 - triangle_wave(t / period + phase)) * scale * period * 0.5 + 0.5).clamp(0, 1)

    def nearest(t: Tensor) -> Tensor:
        return (t / period - torch.round(t / period)) * period

    across, down = stripes(u), stripes(v)
    dots = cover((torch.hypot(nearest(u), nearest(v + phase * period)) - 0.31 * period) * scale)
    logo = cover((torch.hypot(u, v - 0.36) - 0.15) * scale)
    figures = torch.stack(
        [
            torch.zeros_like(down),
            down,
            across,
            dots,
            down * (1 - across) + across * (1 - down),
            logo,
            cover((0.5 - v) * scale),
        ],
        dim=1,
    )
    index = shirts.pattern[:, None].expand(-1, 1, *down.shape[1:])
    figure = figures.gather(1, index)
    return shirts.ground[:, :, None, None] * (1 - figure) + shirts.figure[:, :, None, None] * figure


def shade(texture: Tensor, darkening: Tensor) -> Tensor:
    """Darken cloth, 0 for not at all."""
    return texture * (1 - darkening)[:, None]


def rounded(distance: Tensor) -> Tensor:
    """How near to the edge of a limb, 0 in the middle to 1: its shading."""
    return ((distance + 2.5) / 2.5).clamp(0, 1)


def draw_flat(shirts: Shirts, dice: Dice) -> Tensor:
    """Draw shirts lying flat on a light ground.

    Shapes:
        result: (shirts, 3, 128, 96), 0 to 1.
    """
    centre, top, length = dice.uniform(45, 51), dice.uniform(26, 32), dice.uniform(66, 76)
    turn = dice.uniform(-0.08, 0.08)
    light = 0.97 - dice.uniform(0, 0.12).view(-1, 1)
    tint = (dice.any_colour() - 0.5) * 0.05
    ground = (light + tint).clamp(0, 1)
    canvas = Canvas(ground[:, :, None, None])
    from_x, from_y = X - centre, Y - 64
    x = from_x * turn.cos() + from_y * turn.sin()
    y = from_y * turn.cos() - from_x * turn.sin() + 64
    shoulder, waist = length * 0.36, length * 0.33
    _lay_sleeves(canvas, shirts, x, y, (shoulder, top, length))

    half = shoulder + (waist - shoulder) * ((y - top) / length).clamp(0, 1)
    torso = both(x.abs() - half, y - top - length * 1.08, top + (x.abs() / shoulder) ** 2 * 5 - y)
    texture = cloth(shirts, x / length, (y - top) / length, length)
    canvas.paint(shade(texture, 0.15 * (x / half).abs().clamp(max=1) ** 3), cover(torso))
    round_neck = torch.hypot(x, (y - top) * 1.1) - 10
    v_neck = both(x.abs() - (1 - (y - top) / 21) * 10, top - 2 - y)
    neck = torch.where(shirts.neck == ROUND_NECK, round_neck, v_neck)
    canvas.paint(ground * 0.86, cover(neck) * cover(torso - 2))
    return canvas.pixels.clamp(0, 1)


def _lay_sleeves(
    canvas: Canvas, shirts: Shirts, x: Tensor, y: Tensor, size: tuple[Tensor, Tensor, Tensor]
) -> None:
    shoulder, top, length = size
    short = shirts.sleeves == SHORT_SLEEVES
    angle = torch.where(short, 0.85, 0.38)
    reach = torch.where(short, 0.26 * length, 0.72 * length)
    for side in (-1, 1):
        x0, y0 = side * (shoulder - 5), top + 9
        dx, dy = side * angle.sin(), angle.cos()
        along = (x - x0) * dx + (y - y0) * dy
        across = (x - x0) * dy - (y - y0) * dx
        sleeve = both(
            capsule(x, y, (x0, y0), (x0 + dx * reach, y0 + dy * reach), 8.0), along - reach
        )
        sleeve = torch.where(shirts.sleeves == NO_SLEEVES, torch.full_like(sleeve, WIDTH), sleeve)
        texture = cloth(shirts.sleeve_cloth(), across / length, along / length + 0.1, length)
        canvas.paint(shade(texture, 0.2 * rounded(sleeve)) * 0.95, cover(sleeve))
