"""Requests of try-ons, and their wording."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtryon_services.mannequin.garments import (
    COLOUR_NAMES,
    COLOURS,
    PATTERNS,
    SLEEVE_NAMES,
    Shirts,
)
from vtryon_services.mannequin.shapes import Dice

_WORDINGS = (
    "Put the {} from picture 2 on the person in picture 1",
    "Dress the person in picture 1 in the {} from picture 2",
    "The person in picture 1 wears the {} from picture 2",
    "Replace the clothes in picture 1 with the {} from picture 2",
    "Virtual try-on: person in picture 1, {} in picture 2",
    "{}",
)
_PLAIN_NAMES = ("shirt", "garment", "top", "t-shirt")
_ASIDES = (
    *("high quality photo", "keep the person", "in good light"),
    *("with a smile", "the same face", "as in a shop", "sharp"),
)
AS_IT_IS, RECOLOUR, RESLEEVE = range(3)


@dataclass(frozen=True, slots=True)
class Wishes:
    """Requests of a batch of prompts in addition to the garment; (prompts, 1, 1) each.

    Attributes:
        tucked: whether the shirt ends in the trousers, or hangs over them.
        change: whether the shirt is worn unchanged, in another colour, or with other sleeves;
            `colour` and `sleeves` are the new ones.
    """

    tucked: Tensor
    change: Tensor
    colour: Tensor
    sleeves: Tensor

    def worn(self, shirts: Shirts) -> Shirts:
        """Give the shirts as they are worn."""
        recoloured = (self.change == RECOLOUR).flatten()
        colours = COLOURS.to(self.colour.device)[self.colour.flatten()]
        sleeves = torch.where(self.change == RESLEEVE, self.sleeves, shirts.sleeves)
        return replace(shirts.recoloured(colours, recoloured), sleeves=sleeves)


def draw_wishes(dice: Dice, shirts: Shirts) -> Wishes:
    """Draw requests: a third tucked in, a tenth resleeved, up to a tenth in another colour.

    Shirts without an identifiable ground keep their colours.
    """
    tucked, change = dice.chance(0.35), dice.weigh((0.8, 0.1, 0.1))
    unclear = (change == RECOLOUR) & ~shirts.has_ground
    return Wishes(
        tucked=tucked,
        change=torch.where(unclear, AS_IT_IS, change),
        colour=dice.choose(len(COLOURS)),
        sleeves=dice.choose(3),
    )


def write_prompt(
    shirts: Shirts, wishes: Wishes, index: int, seed: int, *, vague: bool = False
) -> str:
    """Write the prompt of a try-on: the garment, the request, and sometimes an irrelevant remark.

    A vague prompt leaves open how the shirt ends. Differences from the garment's picture are always
    mentioned.
    """
    rng = random.Random(seed)  # noqa: S311
    said = _instruction(wishes, index, vague)
    if rng.random() < 0.2:
        said.append(rng.choice(_ASIDES))
    sentence = rng.choice(_WORDINGS).format(_name(shirts, index, rng))
    return ", ".join([sentence, *said]) + rng.choice(["", "."])


def write_terse_prompt(wishes: Wishes, index: int, *, vague: bool = False) -> str:
    """Write only the instruction, like a negative prompt. A vague one may be blank."""
    return ", ".join(_instruction(wishes, index, vague)) or " "


def _instruction(wishes: Wishes, index: int, vague: bool) -> list[str]:
    change = int(wishes.change[index])
    said = []
    if change == RECOLOUR:
        said.append(f"in {COLOUR_NAMES[int(wishes.colour[index])]}")
    if change == RESLEEVE:
        said.append(f"with {SLEEVE_NAMES[int(wishes.sleeves[index])]}")
    if not vague:
        said.append("tucked in" if wishes.tucked[index] else "worn loose")
    return said


def _name(shirts: Shirts, index: int, rng: random.Random) -> str:
    kind = rng.randrange(6)
    if kind < len(_PLAIN_NAMES):
        return _PLAIN_NAMES[kind]
    pattern = PATTERNS[int(shirts.pattern[index])]
    colour = int(shirts.named[index])
    if kind == len(_PLAIN_NAMES) and colour >= 0:
        return f"{COLOUR_NAMES[colour]} {pattern} shirt"
    return f"{pattern} shirt"
