"""Draw held-out examples through the whole mesh: person, garment, result, truth, a row each.

python -m vtryon_services.mannequin.strip --rows 10 -o docs/strip.png
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from PIL import Image

import vtryon
from vtryon_services.embedded import embedded_mesh
from vtryon_services.mannequin.sheets import sheet
from vtryon_services.mannequin.triples import held_out

_CAPTIONS = ("person", "garment", "result", "truth")


async def draw_rows(count: int) -> list[list[Image.Image]]:
    """Put `count` held-out garments on their persons."""
    rows = []
    async with embedded_mesh() as target, vtryon.Client(target) as client:
        for number in range(count):
            example = held_out(number)
            run = client.try_on(example.person, example.garment, example.prompt, seed=number)
            result = (await run).picture.to_pil()
            rows.append([example.person, example.garment, result, example.truth])
    return rows


def main() -> None:
    """Draw the strip, two examples beside each other in a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = asyncio.run(draw_rows(arguments.rows))
    half = (len(rows) + 1) // 2
    wide = [
        row + (rows[half + i] if half + i < len(rows) else []) for i, row in enumerate(rows[:half])
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(wide, _CAPTIONS * 2, height=192).save(arguments.out)


if __name__ == "__main__":
    main()
