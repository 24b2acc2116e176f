"""Examples of try-on: person, garment, prompt, and the correct result.

Seeds below `HELD_OUT` are for training. Seeds from there on are never used in training:
`held_out(n)` is the n-th example that no model has seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtryon_services.mannequin.garments import Shirts, draw_flat, draw_shirts
from vtryon_services.mannequin.people import People, draw_people, draw_worn
from vtryon_services.mannequin.prompts import Wishes, draw_wishes, write_prompt
from vtryon_services.mannequin.shapes import Dice

HELD_OUT = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Triples:
    """A batch of examples.

    Shapes:
        person, garment, truth: (examples, 3, 128, 96), 0 to 1.
        shirt_before, shirt_after: (examples, 128, 96), how much of a pixel is shirt.
    """

    person: Tensor
    garment: Tensor
    truth: Tensor
    prompts: list[str]
    people: People
    shirts: Shirts
    wishes: Wishes
    shirt_before: Tensor
    shirt_after: Tensor

    def truth_for(self, wishes: Wishes) -> Tensor:
        """Draw the expected picture for another instruction: (examples, 3, 128, 96)."""
        return draw_worn(self.people, wishes.worn(self.shirts), wishes.tucked).pixels


@dataclass(frozen=True, slots=True)
class Example:
    """One example as pictures."""

    person: Image.Image
    garment: Image.Image
    truth: Image.Image
    prompt: str


def draw_triples(count: int, seed: int, device: torch.device | str = "cpu") -> Triples:
    """Draw examples; equal arguments give equal drawings."""
    dice = Dice(count, seed, device)
    people, old, new = draw_people(dice), draw_shirts(dice), draw_shirts(dice)
    wishes = draw_wishes(dice, new)
    before = draw_worn(people, old, dice.chance(0.35))
    after = draw_worn(people, wishes.worn(new), wishes.tucked)
    prompts = [write_prompt(new, wishes, index, seed + index) for index in range(count)]
    return Triples(
        before.pixels,
        draw_flat(new, dice),
        after.pixels,
        prompts,
        people,
        new,
        wishes,
        before.shirt,
        after.shirt,
    )


def draw_pictures(count: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Draw pictures of both kinds, three of four a person: (count, 3, 128, 96), 0 to 1.

    `count` is 2 or more.
    """
    flat = max(1, count // 4)
    dice, worn = Dice(flat, seed, device), Dice(count - flat, seed + 1, device)
    shirts = draw_shirts(dice)
    people = draw_worn(draw_people(worn), draw_shirts(worn), worn.chance(0.35))
    return torch.cat([draw_flat(shirts, dice), people.pixels])


def held_out(number: int) -> Example:
    """Draw the n-th example that no model was trained with."""
    triples = draw_triples(1, HELD_OUT + number)
    return Example(
        to_picture(triples.person[0]),
        to_picture(triples.garment[0]),
        to_picture(triples.truth[0]),
        triples.prompts[0],
    )


def to_picture(pixels: Tensor) -> Image.Image:
    """Give a picture of (3, height, width), 0 to 1."""
    array = (pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(array))
