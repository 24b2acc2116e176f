"""`vtryon example-pair`, `vtryon contact-sheet`, and `vtryon mannequin` for its developers.

Commands import their dependencies when they are called, so that `vtryon --help` stays fast.
"""

from __future__ import annotations

import asyncio
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vtryon.cli.console import PlainConsole

app = typer.Typer(
    help="Train, package and evaluate the small checkpoint in the package.", rich_markup_mode=None
)


def example_pair(
    out: Annotated[Path, typer.Option(help="Output folder; created if missing.")],
    seed: Annotated[int, typer.Option(help="Number of the pair, 0 and up.", min=0, max=10**6)] = 0,
) -> None:
    """Draw a person and a garment that the shipped checkpoint has never seen.

    Writes person.png, garment.png, prompt.txt, and truth.png: the correct result.
    """
    from vtryon_services.mannequin.triples import held_out

    example = held_out(seed)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("person", "garment", "truth"):
        getattr(example, name).save(out / f"{name}.png")
    (out / "prompt.txt").write_text(example.prompt + "\n")
    PlainConsole().say(f"{out}/person.png, {out}/garment.png: “{example.prompt}”")


def contact_sheet(
    pictures: Annotated[
        list[Path], typer.Argument(help="Pictures and folders of pictures, in order.", exists=True)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file, PNG.")],
    height: Annotated[int, typer.Option(help="Size of each picture in pixels.", min=16)] = 384,
) -> None:
    """Lay pictures side by side, each with its name."""
    from PIL import Image

    from vtryon.cli.sheets import sheet

    paths = [
        path
        for given in pictures
        for path in (sorted(given.glob("*.png")) if given.is_dir() else [given])
    ]
    images = [Image.open(path) for path in paths]
    sheet([images], [path.stem for path in paths], height).save(out)
    PlainConsole().say(f"{out}: {len(images)} pictures side by side")


@app.command()
def evaluate(
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(help="Checkpoint folders. Default: the one in the package."),
    ] = None,
    examples: Annotated[int, typer.Option(help="Number of held-out examples.", min=2)] = 200,
    steps: Annotated[int, typer.Option(help="Denoise steps.", min=1)] = 4,
    full: Annotated[
        bool,
        typer.Option(
            help="Evaluate further numbers of steps, guidance scales and kinds of prompts."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure checkpoints on drawings that no training used, all on the same ones."""
    from vtryon_services.mannequin import evaluate as measuring

    console = PlainConsole(stderr=True)
    folders: list[Path | None] = [*checkpoints] if checkpoints else [None]
    reports = {
        str(folder or "shipped"): asyncio.run(
            measuring.evaluate(folder, examples, steps, console, full=full)
        )
        for folder in folders
    }
    if as_json:
        found = {name: report.as_json() for name, report in reports.items()}
        PlainConsole().print_json(json.dumps(found))
    else:
        measuring.show(reports, PlainConsole())


@app.command()
def strip(
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file, PNG.")],
    rows: Annotated[int, typer.Option(help="Number of examples.", min=1)] = 12,
) -> None:
    """Draw held-out examples through the whole mesh: person, garment, result, truth."""
    from vtryon_services.mannequin.strip import draw_strip

    out.parent.mkdir(parents=True, exist_ok=True)
    draw_strip(rows).save(out)
    PlainConsole().say(f"{out}: {rows} examples")


@app.command()
def package(
    folder: Annotated[
        Path, typer.Argument(help="Checkpoint folder.", exists=True, file_okay=False)
    ],
) -> None:
    """Finish a checkpoint: fit its preview map, write geometry.json and digests.json."""
    from vtryon_services.mannequin.package import package as finish

    finish(folder)
    PlainConsole().say(f"{folder} is ready")


class TrainedPart(StrEnum):
    """A part that can be trained separately."""

    VAE = "vae"
    TRANSFORMER = "transformer"
    DECODER = "decoder"
    ALL = "all"


@app.command()
def train(
    part: Annotated[
        TrainedPart, typer.Argument(help="Part to train; later parts need the earlier ones.")
    ],
    run: Annotated[Path, typer.Argument(help="Folder of the run; created if missing.")],
    start: Annotated[
        Path | None,
        typer.Option(help="Checkpoint to start from, instead of random weights.", exists=True),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="torch device. Default: the GPU if there is one.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Batch size of a training step.", min=1)] = 32,
    rate: Annotated[float, typer.Option(help="Factor of the default learning rates.", min=0)] = 1.0,
    plain: Annotated[
        bool, typer.Option("--plain", help="Train in fp32, without compilation.")
    ] = False,
    examples: Annotated[
        int, typer.Option(help="Number of examples to encode for the transformer.", min=1)
    ] = 65_280,
    vae_steps: Annotated[int, typer.Option(help="Training steps of the VAE.", min=1)] = 7000,
    transformer_steps: Annotated[
        int, typer.Option(help="Training steps of the transformer.", min=1)
    ] = 20_000,
    decoder_steps: Annotated[
        int, typer.Option(help="Training steps of the decoder.", min=1)
    ] = 1000,
) -> None:
    """Train a part of a checkpoint, or all of it; the same command goes on where it stopped.

    The transformer comes with the examples that the run's VAE encodes for it, the decoder with the
    finished checkpoint.
    """
    from vtryon_services.mannequin.training.run import Settings, TrainingRun

    settings = Settings.of(
        device,
        start=start,
        batch=batch,
        rate=rate,
        plain=plain,
        examples=examples,
        vae_steps=vae_steps,
        transformer_steps=transformer_steps,
        decoder_steps=decoder_steps,
    )
    TrainingRun(run, settings, PlainConsole(stderr=True)).make(part.value)
