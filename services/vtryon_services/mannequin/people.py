"""Paper dolls: a person on a ground, wearing a shirt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vtryon_services.mannequin.garments import (
    COLOURS,
    LONG_SLEEVES,
    NO_SLEEVES,
    ROUND_NECK,
    SHORT_SLEEVES,
    Shirts,
    cloth,
    rounded,
    shade,
)
from vtryon_services.mannequin.shapes import (
    HEIGHT,
    WIDTH,
    Canvas,
    Dice,
    X,
    Y,
    both,
    capsule,
    cover,
    ellipse,
    palette,
    triangle_wave,
)

_SKIN = palette("ffe0c4", "f1c29b", "d69e74", "a87048", "784c30", "543424")
_HAIR = palette("1c1614", "462c1c", "784e1c", "c8a054", "963c1e", "96969b", "3c325a")
_PLAIN, _FLOOR, _WALL = range(3)
_SHORT_HAIR, _LONG_HAIR, _BUN = range(3)


class Arm(NamedTuple):
    """Angles from straight down, in radians: the upper arm, and the forearm against it."""

    upper: Tensor
    bend: Tensor


@dataclass(frozen=True, slots=True)
class People:
    """A batch of people and the grounds they stand on; colours (people, 3), the rest columns."""

    wall: Tensor
    floor: Tensor
    floor_line: Tensor
    ground: Tensor
    skin: Tensor
    hair: Tensor
    hair_style: Tensor
    trousers: Tensor
    skirt: Tensor
    centre: Tensor
    size: Tensor
    shoulders_y: Tensor
    shoulder: Tensor
    waist: Tensor
    torso: Tensor
    left: Arm
    right: Arm

    @property
    def hip_y(self) -> Tensor:
        """Where the torso ends."""
        return self.shoulders_y + self.torso

    @property
    def head_y(self) -> Tensor:
        """Where the middle of the face is."""
        return self.shoulders_y - 17 * self.size


class Worn(NamedTuple):
    """Pictures of people in shirts.

    Shapes:
        pixels: (people, 3, 128, 96), 0 to 1; shirt: (people, 128, 96), how much of it is shirt.
    """

    pixels: Tensor
    shirt: Tensor


def draw_people(dice: Dice) -> People:
    """Draw a batch of people."""
    size = dice.uniform(0.92, 1.08)
    shoulder = size * dice.uniform(15, 19)
    return People(
        wall=dice.colour(COLOURS * 0.5 + 0.45, 0.08)[0],
        floor=dice.colour(COLOURS * 0.6 + 0.25, 0.08)[0],
        floor_line=dice.uniform(96, 140),
        ground=dice.choose(3),
        skin=dice.colour(_SKIN, 0.02)[0],
        hair=dice.colour(_HAIR, 0.03)[0],
        hair_style=dice.choose(3),
        trousers=dice.colour(COLOURS, 0.04)[0],
        skirt=dice.chance(0.3),
        centre=dice.uniform(43, 53),
        size=size,
        shoulders_y=dice.uniform(36, 43),
        shoulder=shoulder,
        waist=shoulder * dice.uniform(0.72, 0.92),
        torso=size * dice.uniform(44, 52),
        left=_arm(dice),
        right=_arm(dice),
    )


def _arm(dice: Dice) -> Arm:
    return Arm(
        dice.uniform(math.radians(8), math.radians(70)),
        dice.uniform(math.radians(-60), math.radians(40)),
    )


def draw_worn(people: People, shirts: Shirts, tucked: Tensor) -> Worn:
    """Draw people wearing shirts; `tucked` is a column of truths."""
    wall = people.wall[:, :, None, None] * (1 - 0.25 * Y / HEIGHT)[:, None]
    canvas = Canvas(wall)
    _paint_ground(canvas, people)
    _paint_below(canvas, people)
    torso, open_neck = _paint_torso(canvas, people, shirts, tucked)
    canvas.paint(people.skin, open_neck)
    neck = capsule(
        X,
        Y,
        (people.centre, people.head_y + 6 * people.size),
        (people.centre, people.shoulders_y + people.size),
        4.2 * people.size,
    )
    canvas.paint(people.skin * 0.93, cover(neck))
    shirt = torso * (1 - open_neck)
    for side, arm in ((-1, people.left), (1, people.right)):
        bare, sleeve = _paint_arm(canvas, people, shirts, side, arm)
        shirt = shirt * (1 - bare) * (1 - sleeve) + sleeve
    _paint_head(canvas, people)
    return Worn(canvas.pixels.clamp(0, 1), shirt)


def _paint_ground(canvas: Canvas, people: People) -> None:
    floor = torch.where(people.ground == _FLOOR, cover(people.floor_line - Y), 0.0)
    boards = torch.where(people.ground == _WALL, (triangle_wave(X / 24) > 0.9) * 0.5, 0.0)
    canvas.paint(people.floor, (floor + boards).clamp(0, 1))


def _paint_below(canvas: Canvas, people: People) -> None:
    x, size, hip, waist = X - people.centre, people.size, people.hip_y, people.waist
    hair = capsule(
        x, Y, (x * 0, people.head_y - 2 * size), (x * 0, people.shoulders_y + 8 * size), 12 * size
    )
    canvas.paint(people.hair, cover(hair) * (people.hair_style == _LONG_HAIR))
    for side, light in ((-1, 0.94), (1, 1.0)):
        foot = (side * waist * 0.62, torch.full_like(hip, 150.0))
        leg = capsule(x, Y, (side * waist * 0.5, hip), foot, waist * 0.52)
        canvas.paint(people.trousers * light, cover(leg))
    flare = waist + 0.35 * (Y - hip).clamp(min=0)
    skirt = both(x.abs() - flare, hip - 4 - Y, Y - (hip + 34 * size))
    canvas.paint(people.trousers, cover(skirt) * people.skirt)


def _paint_torso(
    canvas: Canvas, people: People, shirts: Shirts, tucked: Tensor
) -> tuple[Tensor, Tensor]:
    """Paint belt and torso; give the covers of the torso and of the neckline's opening."""
    x, y, size = X - people.centre, Y - people.shoulders_y, people.size
    hip, torso, waist = people.hip_y, people.torso, people.waist
    tuck = tucked.float()
    hem = hip + (1 - tuck) * 9 * size - tuck * 2 * size
    half = people.shoulder + (waist * 1.04 - people.shoulder) * (y / torso).clamp(0, 1)
    belt = both(x.abs() - waist, hip - 3 * size - Y, Y - hip - 2 * size)
    canvas.paint(torch.full((len(tuck), 3), 0.12), cover(belt) * tuck)
    body = both(
        x.abs() - half - (1 - tuck) * 1.5 * size,
        Y - hem,
        (x.abs() / people.shoulder) ** 2 * 4 * size - y,
    )
    texture = cloth(shirts, x / torso, y / torso, torso)
    canvas.paint(shade(texture, 0.22 * (x / half).abs().clamp(max=1) ** 3), cover(body))
    round_neck = torch.hypot(x, y * 1.1) - 7 * size
    v_neck = both(x.abs() - (1 - y / (15 * size)) * 7 * size, -2 - y)
    neck = torch.where(shirts.neck == ROUND_NECK, round_neck, v_neck)
    return cover(body), cover(neck) * cover(-3 - y)


def _paint_arm(
    canvas: Canvas, people: People, shirts: Shirts, side: int, arm: Arm
) -> tuple[Tensor, Tensor]:
    """Paint an arm and its sleeve; give the covers of both."""
    size, fore = people.size, arm.upper + arm.bend
    upper_x, upper_y = side * arm.upper.sin(), arm.upper.cos()
    fore_x, fore_y = side * fore.sin(), fore.cos()
    x0 = people.centre + side * (people.shoulder - 3.5 * size)
    y0 = people.shoulders_y + 7 * size
    x1, y1 = x0 + upper_x * 24 * size, y0 + upper_y * 24 * size
    x2, y2 = x1 + fore_x * 21 * size, y1 + fore_y * 21 * size

    skin = torch.minimum(
        capsule(X, Y, (x0, y0), (x1, y1), 4.8 * size),
        torch.minimum(
            capsule(X, Y, (x1, y1), (x2, y2), 4.2 * size),
            torch.hypot(X - x2, Y - y2) - 4.8 * size,
        ),
    )
    canvas.paint(people.skin * 0.97, cover(skin))

    short, long = shirts.sleeves == SHORT_SLEEVES, shirts.sleeves == LONG_SLEEVES
    share = torch.where(short, 0.6, 1.0)
    along = (X - x0) * upper_x + (Y - y0) * upper_y
    elbow = (x0 + (x1 - x0) * share, y0 + (y1 - y0) * share)
    upper = capsule(X, Y, (x0, y0), elbow, 6.2 * size)
    upper = torch.where(short, both(upper, along - 24 * size * share), upper)
    along_fore = (X - x1) * fore_x + (Y - y1) * fore_y
    cuff = (x1 + (x2 - x1) * 0.8, y1 + (y2 - y1) * 0.8)
    lower = both(capsule(X, Y, (x1, y1), cuff, 5.4 * size), along_fore - 21 * size * 0.8)
    sleeve = torch.where(long, torch.minimum(upper, lower), upper)
    sleeve = torch.where(shirts.sleeves == NO_SLEEVES, torch.full_like(sleeve, WIDTH), sleeve)

    on_upper = (upper < lower) | ~long
    down = torch.where(on_upper, along, 24 * size + along_fore) / people.torso
    across = torch.where(
        on_upper,
        (X - x0) * upper_y - (Y - y0) * upper_x,
        (X - x1) * fore_y - (Y - y1) * fore_x,
    )
    texture = cloth(shirts.sleeve_cloth(), across / people.torso, down + 0.1, people.torso)
    canvas.paint(shade(texture, 0.25 * rounded(sleeve)) * 0.95, cover(sleeve))
    return cover(skin), cover(sleeve)


def _paint_head(canvas: Canvas, people: People) -> None:
    x, y, size = X - people.centre, Y - people.head_y, people.size

    def oval(dx: float, dy: float, radius_x: float, radius_y: float) -> Tensor:
        return ellipse(x - dx * size, y - dy * size, radius_x * size, radius_y * size)

    canvas.paint(people.hair, cover(oval(0, -2, 11, 12)))
    canvas.paint(people.hair, cover(oval(0, -14, 5, 5)) * (people.hair_style == _BUN))
    canvas.paint(people.skin, cover(both(oval(0, 2, 9, 11), -5 * size - y)))
    black = torch.full_like(people.skin, 0.1)
    for side in (-3.6, 3.6):
        canvas.paint(black, cover(oval(side, 1, 1.4, 1.6)))
    lips = torch.tensor([0.7, 0.25, 0.25]).expand_as(people.skin)
    canvas.paint(lips, cover(oval(0, 8, 3, 1.1)))
