"""What is said about a try-on, in several wordings."""

from __future__ import annotations

import random

from vtryon_services.mannequin.garments import COLOUR_NAMES, PATTERNS, Shirts

_WORDINGS = (
    "Put the {} from picture 2 on the person in picture 1",
    "Dress the person in picture 1 in the {} from picture 2",
    "The person in picture 1 wears the {} from picture 2",
    "Replace the clothes of the person in picture 1 with the {} from picture 2",
    "Virtual try-on: person in picture 1, {} in picture 2",
)
_PLAIN_NAMES = ("shirt", "garment", "top", "t-shirt")


def write_prompt(shirts: Shirts, index: int, tucked: bool, seed: int) -> str:
    """Word one try-on; "tucked in" is always said, "worn loose" half of the time."""
    rng = random.Random(seed)  # noqa: S311
    ending = ", tucked in" if tucked else rng.choice(["", ", worn loose"])
    name = _name(shirts, index, rng)
    return rng.choice(_WORDINGS).format(name) + ending + rng.choice(["", "."])


def _name(shirts: Shirts, index: int, rng: random.Random) -> str:
    kind = rng.randrange(6)
    if kind < len(_PLAIN_NAMES):
        return _PLAIN_NAMES[kind]
    pattern = PATTERNS[int(shirts.pattern[index])]
    colour = int(shirts.named[index])
    if kind == len(_PLAIN_NAMES) and colour >= 0:
        return f"{COLOUR_NAMES[colour]} {pattern} shirt"
    return f"{pattern} shirt"
