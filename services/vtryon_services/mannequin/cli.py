"""`vtryon example-pair` and `vtryon contact-sheet`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def example_pair(
    out: Annotated[Path, typer.Option(help="Folder to write to; made if it is not there.")],
    seed: Annotated[int, typer.Option(help="Which pair, 0 and up.", min=0, max=10**6)] = 0,
) -> None:
    """Draw a person and a garment that the shipped checkpoint has never seen.

    Writes person.png, garment.png, prompt.txt, and truth.png: what ought to come out.
    """
    from vtryon_services.mannequin.triples import held_out

    example = held_out(seed)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("person", "garment", "truth"):
        getattr(example, name).save(out / f"{name}.png")
    (out / "prompt.txt").write_text(example.prompt + "\n")
    Console().print(f"{out}/person.png, {out}/garment.png: “{example.prompt}”", highlight=False)


def contact_sheet(
    pictures: Annotated[
        list[Path], typer.Argument(help="Pictures, and folders of pictures, in order.", exists=True)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")],
    height: Annotated[int, typer.Option(help="Of each picture, in pixels.", min=16)] = 384,
) -> None:
    """Lay pictures side by side, each with its name."""
    from PIL import Image

    from vtryon_services.mannequin.sheets import sheet

    paths = [
        path
        for given in pictures
        for path in (sorted(given.glob("*.png")) if given.is_dir() else [given])
    ]
    images = [Image.open(path) for path in paths]
    sheet([images], [path.stem for path in paths], height).save(out)
    Console().print(f"{out}: {len(images)} pictures side by side", highlight=False)
