"""Examples of try-on: person, garment, prompt, and what ought to come out.

Seeds below `HELD_OUT` are for training. Those from there on are never trained with: `held_out(n)`
is the n-th example that no model has seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtryon_services.mannequin.garments import Shirts, draw_flat, draw_shirts
from vtryon_services.mannequin.people import draw_people, draw_worn
from vtryon_services.mannequin.prompts import write_prompt
from vtryon_services.mannequin.shapes import Dice

HELD_OUT = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Triples:
    """A batch of examples.

    Shapes:
        person, garment, truth: (examples, 3, 128, 96), 0 to 1; tucked: (examples,).
        shirt_before, shirt_after: (examples, 128, 96), how much of a pixel is shirt.
    """

    person: Tensor
    garment: Tensor
    truth: Tensor
    prompts: list[str]
    tucked: Tensor
    shirts: Shirts
    shirt_before: Tensor
    shirt_after: Tensor


@dataclass(frozen=True, slots=True)
class Example:
    """One example as pictures."""

    person: Image.Image
    garment: Image.Image
    truth: Image.Image
    prompt: str


def draw_triples(count: int, seed: int) -> Triples:
    """Draw examples; equal arguments give equal drawings."""
    dice = Dice(count, seed)
    people, old, new = draw_people(dice), draw_shirts(dice), draw_shirts(dice)
    tucked_before, tucked = dice.chance(0.35), dice.chance(0.35)
    before = draw_worn(people, old, tucked_before)
    after = draw_worn(people, new, tucked)
    prompts = [
        write_prompt(new, index, bool(tucked[index]), seed + index) for index in range(count)
    ]
    return Triples(
        before.pixels,
        draw_flat(new, dice),
        after.pixels,
        prompts,
        tucked.flatten(),
        new,
        before.shirt,
        after.shirt,
    )


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
    array = (pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(np.ascontiguousarray(array))
