"""Shirts: their cloth, and how they look lying flat."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtryon_services.mannequin.shapes import (
    WIDTH,
    Canvas,
    Dice,
    both,
    capsule,
    cover,
    grid,
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
PATTERNS = (
    *("plain", "striped", "vertical striped", "dotted", "checked"),
    *("sash", "logo", "two-tone", "raglan"),
)
_PATTERN_WEIGHTS = (0.2, 0.15, 0.13, 0.12, 0.1, 0.07, 0.1, 0.07, 0.06)
_WITHOUT_GROUND = ("striped", "vertical striped", "checked", "two-tone")
_FIRST_TORSO_PATTERN = PATTERNS.index("sash")  # from here on, sleeves are of one colour
_RAGLAN = PATTERNS.index("raglan")
SLEEVE_NAMES = ("no sleeves", "short sleeves", "long sleeves")
NO_SLEEVES, SHORT_SLEEVES, LONG_SLEEVES = range(3)
ROUND_NECK, V_NECK, SQUARE_NECK = range(3)


@dataclass(frozen=True, slots=True)
class Shirts:
    """A batch of shirts.

    Shapes:
        ground, figure: (shirts, 3), the two colours; named: (shirts,), index of the ground's name
        or −1; the remaining ones are columns. `period` and `phase` of the pattern are in shirt
        lengths.
    """

    ground: Tensor
    figure: Tensor
    named: Tensor
    pattern: Tensor
    period: Tensor
    phase: Tensor
    sleeves: Tensor
    neck: Tensor

    @property
    def has_ground(self) -> Tensor:
        """Whether the ground colour is identifiable: not between stripes."""
        even = torch.tensor([PATTERNS.index(name) for name in _WITHOUT_GROUND])
        return ~torch.isin(self.pattern, even.to(self.pattern.device))

    def sleeve_cloth(self) -> Shirts:
        """Give the cloth of the sleeves: sashes, logos and two tones are the torso's alone."""
        plain = torch.zeros_like(self.pattern)
        pattern = torch.where(self.pattern >= _FIRST_TORSO_PATTERN, plain, self.pattern)
        raglan = (self.pattern == _RAGLAN).view(-1, 1)
        ground = torch.where(raglan, self.figure, self.ground)
        return replace(self, pattern=pattern, ground=ground)

    def recoloured(self, ground: Tensor, where: Tensor) -> Shirts:
        """Return shirts with another ground colour (shirts, 3), where a mask (shirts,) is set."""
        ground = torch.where(where[:, None], ground, self.ground)
        return replace(self, ground=ground, figure=_apart(ground, self.figure))


def draw_shirts(dice: Dice) -> Shirts:
    """Draw a batch of shirts, each with two distinguishable colours."""
    ground, named = dice.colour(COLOURS, 0.04)
    figure, _ = dice.colour(COLOURS, 0.04)
    unnamed = dice.chance(0.2).flatten()
    ground = torch.where(unnamed[:, None], dice.any_colour(), ground)
    return Shirts(
        ground=ground,
        figure=_apart(ground, figure),
        named=torch.where(unnamed, torch.full_like(named, -1), named),
        pattern=dice.weigh(_PATTERN_WEIGHTS),
        period=dice.uniform(0.22, 0.36),
        phase=dice.uniform(0, 1),
        sleeves=dice.choose(3),
        neck=dice.weigh((0.4, 0.35, 0.25)),
    )


def _apart(ground: Tensor, figure: Tensor) -> Tensor:
    """Give the figure's colour, or, where it is too near to the ground's, black or white."""
    alike = (ground - figure).abs().sum(1, keepdim=True) < 0.6
    opposite = (1 - ground.mean(1, keepdim=True)).round().expand(-1, 3) * 0.9 + 0.05
    return torch.where(alike, opposite, figure)


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
    plain = torch.zeros_like(down)
    figures = torch.stack(
        [
            plain,
            down,
            across,
            dots,
            down * (1 - across) + across * (1 - down),
            cover(((u + 0.75 * v - 0.36).abs() - 0.12) * scale * 0.8),
            cover((torch.hypot(u, v - 0.42) - 0.17) * scale),
            cover((0.5 - v) * scale),
            plain,
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


def neckline(shirts: Shirts, x: Tensor, y: Tensor, size: Tensor) -> Tensor:
    """Distance to the opening of a neck; `y` counts down from the shoulders, `size` is pixels."""
    across = x.abs()
    round_neck = torch.hypot(x, y * 1.1) - size
    v_neck = both(across - (1 - y / (2.1 * size)) * size, -2 - y)
    square = both(across - size, y - 0.8 * size, -2 - y)
    return torch.where(
        shirts.neck == ROUND_NECK, round_neck, torch.where(shirts.neck == V_NECK, v_neck, square)
    )


def draw_flat(shirts: Shirts, dice: Dice) -> Tensor:
    """Draw shirts lying flat, on light and dark grounds.

    Shapes:
        result: (shirts, 3, 128, 96), 0 to 1.
    """
    centre, top, length = dice.uniform(46, 50), dice.uniform(28, 32), dice.uniform(62, 68)
    turn = dice.uniform(-0.06, 0.06)
    light, dark = dice.uniform(0.84, 0.97), dice.uniform(0.1, 0.45)
    brightness = torch.where(dice.chance(0.25), dark, light).view(-1, 1)
    ground = (brightness + (dice.any_colour() - 0.5) * 0.08).clamp(0, 1)
    canvas = Canvas(ground[:, :, None, None])
    pixel_x, pixel_y = grid(dice.device)
    from_x, from_y = pixel_x - centre, pixel_y - 64
    x = from_x * turn.cos() + from_y * turn.sin()
    y = from_y * turn.cos() - from_x * turn.sin() + 64
    shoulder, waist = length * 0.37, length * 0.33
    half = shoulder + (waist - shoulder) * ((y - top) / length).clamp(0, 1)
    torso = both(x.abs() - half, y - top - length * 1.08, top + (x.abs() / shoulder) ** 2 * 5 - y)
    canvas.paint(ground * 0.8, (0.5 - torso / 5).clamp(0, 1) * 0.7)
    _lay_sleeves(canvas, shirts, x, y, (shoulder, top, length))

    texture = cloth(shirts, x / length, (y - top) / length, length)
    canvas.paint(shade(texture, 0.15 * (x / half).abs().clamp(max=1) ** 3), cover(torso))
    neck = neckline(shirts, x, y - top, torch.full_like(top, 9.5))
    canvas.paint(ground * 0.8, cover(neck) * cover(torso - 2))
    return canvas.pixels.clamp(0, 1)


def _lay_sleeves(
    canvas: Canvas, shirts: Shirts, x: Tensor, y: Tensor, size: tuple[Tensor, Tensor, Tensor]
) -> None:
    shoulder, top, length = size
    short = shirts.sleeves == SHORT_SLEEVES
    angle = torch.where(short, 0.85, 0.36)
    reach = torch.where(short, 0.28 * length, 0.78 * length)
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
