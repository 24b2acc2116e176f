"""Held-out examples through the whole mesh: person, garment, result, truth."""

from __future__ import annotations

import asyncio

from PIL import Image

import vtryon
from vtryon.cli.sheets import sheet
from vtryon_services.embedded import embedded_mesh
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


def draw_strip(count: int, columns: int = 3) -> Image.Image:
    """Draw this many examples, several per row."""
    rows = asyncio.run(draw_rows(count))
    height = -(-len(rows) // columns)
    wide = [
        [picture for at in range(row, len(rows), height) for picture in rows[at]]
        for row in range(height)
    ]
    return sheet(wide, _CAPTIONS * columns, height=192)
