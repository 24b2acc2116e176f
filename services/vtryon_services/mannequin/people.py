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
    SHORT_SLEEVES,
    Shirts,
    cloth,
    neckline,
    rounded,
    shade,
)
from vtryon_services.mannequin.shapes import (
    HEIGHT,
    WIDTH,
    Canvas,
    Dice,
    Grid,
    both,
    capsule,
    cover,
    ellipse,
    grid,
    palette,
    triangle_wave,
)

_SKIN = palette("ffe0c4", "f1c29b", "d69e74", "a87048", "784c30", "5c3a28")
_HAIR = palette("1c1614", "462c1c", "784e1c", "c8a054", "963c1e", "96969b", "3c325a")
_EYES = palette("2a1a10", "3a2a18", "2c4a66", "2e5a3a")
_PLAIN, _FLOOR, _WALL = range(3)
_SHORT_HAIR, _LONG_HAIR, _BUN, _BOB = range(4)
_UPPER, _FORE = 27.0, 23.0  # lengths of the arm's parts, in pixels at size 1


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
    eyes: Tensor
    smile: Tensor
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
    def pixels(self) -> Grid:
        """Where the pixels are."""
        return grid(self.size.device)

    @property
    def hip_y(self) -> Tensor:
        """Where the torso ends."""
        return self.shoulders_y + self.torso

    @property
    def head_y(self) -> Tensor:
        """Where the middle of the face is."""
        return self.shoulders_y - 21 * self.size


class Worn(NamedTuple):
    """Pictures of people in shirts.

    Shapes:
        pixels: (people, 3, 128, 96), 0 to 1; shirt: (people, 128, 96), how much of it is shirt.
    """

    pixels: Tensor
    shirt: Tensor


def draw_people(dice: Dice) -> People:
    """Draw a batch of people, a third of them before a dark wall."""
    size = dice.uniform(0.95, 1.05)
    shoulder = size * dice.uniform(19, 22)
    light = torch.where(dice.chance(0.33), 0.08, 0.45).view(-1, 1)
    return People(
        wall=(dice.colour(COLOURS, 0.1)[0] * 0.5 + light).clamp(0, 1),
        floor=dice.colour(COLOURS * 0.6 + 0.2, 0.08)[0],
        floor_line=dice.uniform(96, 140),
        ground=dice.choose(3),
        skin=dice.colour(_SKIN, 0.02)[0],
        hair=dice.colour(_HAIR, 0.03)[0],
        hair_style=dice.choose(4),
        eyes=dice.colour(_EYES, 0.02)[0],
        smile=dice.uniform(-0.4, 1.6),
        trousers=dice.colour(COLOURS, 0.04)[0],
        skirt=dice.chance(0.3),
        centre=dice.uniform(45, 51),
        size=size,
        shoulders_y=dice.uniform(44, 48),
        shoulder=shoulder,
        waist=shoulder * dice.uniform(0.75, 0.9),
        torso=size * dice.uniform(54, 60),
        left=_draw_arm(dice),
        right=_draw_arm(dice),
    )


def _draw_arm(dice: Dice) -> Arm:
    """Draw an arm's pose: hanging, on the hip, held out, or laid over the torso."""
    upper = [(6, 24), (26, 42), (24, 52), (4, 14)]
    bend = [(-18, 12), (-95, -70), (0, 60), (-118, -88)]
    pose = dice.weigh((0.42, 0.16, 0.22, 0.2))[..., None]

    def angle(ranges: list[tuple[int, int]]) -> Tensor:
        drawn = [dice.uniform(math.radians(low), math.radians(high)) for low, high in ranges]
        return torch.stack(drawn, dim=-1).gather(-1, pose)[..., 0]

    return Arm(angle(upper), angle(bend))


def draw_worn(people: People, shirts: Shirts, tucked: Tensor) -> Worn:
    """Draw people wearing shirts; `tucked` is a column of truths."""
    wall = people.wall[:, :, None, None] * (1 - 0.25 * people.pixels.y / HEIGHT)[:, None]
    canvas = Canvas(wall)
    _paint_ground(canvas, people)
    _paint_below(canvas, people)
    torso, open_neck = _paint_torso(canvas, people, shirts, tucked)
    canvas.paint(people.skin, open_neck)
    neck = capsule(
        *people.pixels,
        (people.centre, people.head_y + 8 * people.size),
        (people.centre, people.shoulders_y + people.size),
        5 * people.size,
    )
    canvas.paint(people.skin * 0.9, cover(neck))
    shirt = torso * (1 - open_neck) * (1 - cover(neck))
    for side, arm in ((-1, people.left), (1, people.right)):
        bare, sleeve = _paint_arm(canvas, people, shirts, side, arm)
        shirt = shirt * (1 - bare) * (1 - sleeve) + sleeve
    _paint_head(canvas, people)
    return Worn(canvas.pixels.clamp(0, 1), shirt)


def _paint_ground(canvas: Canvas, people: People) -> None:
    x, y = people.pixels
    floor = torch.where(people.ground == _FLOOR, cover(people.floor_line - y), 0.0)
    boards = torch.where(people.ground == _WALL, (triangle_wave(x / 24) > 0.9) * 0.5, 0.0)
    canvas.paint(people.floor, (floor + boards).clamp(0, 1))


def _paint_below(canvas: Canvas, people: People) -> None:
    x, y = people.pixels.x - people.centre, people.pixels.y
    size, hip, waist = people.size, people.hip_y, people.waist
    behind = torch.where(people.hair_style == _LONG_HAIR, 12.0, -12.0) * size
    hair = capsule(
        x, y, (x * 0, people.head_y - 2 * size), (x * 0, people.shoulders_y + behind), 14.5 * size
    )
    has = (people.hair_style == _LONG_HAIR) | (people.hair_style == _BOB)
    canvas.paint(people.hair * 0.85, cover(hair) * has)
    for side, light in ((-1, 0.94), (1, 1.0)):
        foot = (side * waist * 0.62, torch.full_like(hip, 165.0))
        leg = capsule(x, y, (side * waist * 0.5, hip), foot, waist * 0.52)
        canvas.paint(people.trousers * light, cover(leg))
    flare = waist + 0.35 * (y - hip).clamp(min=0)
    skirt = both(x.abs() - flare, hip - 4 - y)
    canvas.paint(people.trousers, cover(skirt) * people.skirt)


def _paint_torso(
    canvas: Canvas, people: People, shirts: Shirts, tucked: Tensor
) -> tuple[Tensor, Tensor]:
    """Paint belt and torso; give the covers of the torso and of the neckline's opening."""
    x, down = people.pixels.x - people.centre, people.pixels.y
    y, size, tuck = down - people.shoulders_y, people.size, tucked.float()
    hip, torso, waist = people.hip_y, people.torso, people.waist
    hem = hip + (1 - tuck) * 10 * size - tuck * 3 * size
    half = people.shoulder + (waist * 1.04 - people.shoulder) * (y / torso).clamp(0, 1)
    belt = both(x.abs() - waist, hip - 5 * size - down, down - hip - 1 * size)
    canvas.paint(torch.full_like(people.skin, 0.12), cover(belt) * tuck)
    body = both(
        x.abs() - half - (1 - tuck) * 1.5 * size,
        down - hem,
        (x.abs() / people.shoulder) ** 2 * 4 * size - y,
    )
    texture = cloth(shirts, x / torso, y / torso, torso)
    canvas.paint(shade(texture, 0.22 * (x / half).abs().clamp(max=1) ** 3), cover(body))
    neck = neckline(shirts, x, y, 8.5 * size)
    return cover(body), cover(neck) * cover(-3 - y)


def _paint_arm(
    canvas: Canvas, people: People, shirts: Shirts, side: int, arm: Arm
) -> tuple[Tensor, Tensor]:
    """Paint an arm and its sleeve; give the covers of both."""
    x, y = people.pixels
    size, fore = people.size, arm.upper + arm.bend
    upper_x, upper_y = side * arm.upper.sin(), arm.upper.cos()
    fore_x, fore_y = side * fore.sin(), fore.cos()
    x0 = people.centre + side * (people.shoulder - 4 * size)
    y0 = people.shoulders_y + 8 * size
    x1, y1 = x0 + upper_x * _UPPER * size, y0 + upper_y * _UPPER * size
    x2, y2 = x1 + fore_x * _FORE * size, y1 + fore_y * _FORE * size

    skin = torch.minimum(
        capsule(x, y, (x0, y0), (x1, y1), 5.4 * size),
        torch.minimum(
            capsule(x, y, (x1, y1), (x2, y2), 4.8 * size),
            torch.hypot(x - x2, y - y2) - 5.6 * size,
        ),
    )
    canvas.paint(people.skin * 0.8, (0.5 - skin / 2).clamp(0, 1))
    canvas.paint(people.skin * 0.97, cover(skin))

    short, long = shirts.sleeves == SHORT_SLEEVES, shirts.sleeves == LONG_SLEEVES
    share = torch.where(short, 0.6, 1.0)
    along = (x - x0) * upper_x + (y - y0) * upper_y
    elbow = (x0 + (x1 - x0) * share, y0 + (y1 - y0) * share)
    upper = capsule(x, y, (x0, y0), elbow, 7 * size)
    upper = torch.where(short, both(upper, along - _UPPER * size * share), upper)
    along_fore = (x - x1) * fore_x + (y - y1) * fore_y
    cuff = (x1 + (x2 - x1) * 0.8, y1 + (y2 - y1) * 0.8)
    lower = both(capsule(x, y, (x1, y1), cuff, 6.2 * size), along_fore - _FORE * size * 0.8)
    sleeve = torch.where(long, torch.minimum(upper, lower), upper)
    sleeve = torch.where(shirts.sleeves == NO_SLEEVES, torch.full_like(sleeve, WIDTH), sleeve)

    on_upper = (upper < lower) | ~long
    down = torch.where(on_upper, along, _UPPER * size + along_fore) / people.torso
    across = torch.where(
        on_upper,
        (x - x0) * upper_y - (y - y0) * upper_x,
        (x - x1) * fore_y - (y - y1) * fore_x,
    )
    texture = cloth(shirts.sleeve_cloth(), across / people.torso, down + 0.1, people.torso)
    canvas.paint(shade(texture, 0.3 * rounded(sleeve)) * 0.95, cover(sleeve))
    return (0.5 - skin / 2).clamp(0, 1), cover(sleeve)


def _paint_head(canvas: Canvas, people: People) -> None:
    x, y = people.pixels.x - people.centre, people.pixels.y - people.head_y
    size = people.size

    def oval(dx: float, dy: float, radius_x: float, radius_y: float) -> Tensor:
        return cover(ellipse(x - dx * size, y - dy * size, radius_x * size, radius_y * size))

    def line(start: tuple[float, float], end: tuple[float, float], radius: float) -> Tensor:
        (x0, y0), (x1, y1) = [(dx * size, dy * size) for dx, dy in (start, end)]
        return cover(capsule(x, y, (x0, y0), (x1, y1), radius * size))

    canvas.paint(people.hair, oval(0, -16, 6, 6) * (people.hair_style == _BUN))
    canvas.paint(people.hair, oval(0, -2, 13.5, 15))
    for side in (-1, 1):
        canvas.paint(people.skin * 0.92, oval(12 * side, 3, 2.2, 3))
    face = both(
        ellipse(x, y - 2 * size, 11.5 * size, 13.5 * size), -6.5 * size - y + (x / size) ** 2 * 0.02
    )
    canvas.paint(people.skin, cover(face))
    white, brow = torch.full_like(people.skin, 0.97), people.hair * 0.6
    for across in (-4.6, 4.6):
        canvas.paint(white, oval(across, 1, 2.9, 2.1))
        canvas.paint(people.eyes, oval(across, 1, 1.6, 1.9))
        canvas.paint(brow, line((across - 2.6, -3.2), (across + 2.6, -3.4), 0.8))
    canvas.paint(people.skin * 0.78, line((0, 2.5), (0.6, 5.5), 0.9))
    lips = people.skin * 0.35 + people.skin.new_tensor([0.45, 0.1, 0.12])
    curve = people.smile * size * (1 - (x / (4.2 * size)) ** 2)
    mouth = both(x.abs() - 4.2 * size, (y - 9.3 * size - curve).abs() - 1.1 * size)
    canvas.paint(lips.clamp(0, 1), cover(mouth))
