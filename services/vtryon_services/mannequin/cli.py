"""`vtryon example-pair`, `vtryon contact-sheet`, and `vtryon mannequin` for its makers.

Commands import what they need when they are called, so that `vtryon --help` stays quick.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(help="Train, package and measure the small checkpoint that ships.")
train = typer.Typer(help="Train parts of a checkpoint; the same command goes on where it stopped.")
app.add_typer(train, name="train")


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


@app.command()
def evaluate(
    checkpoints: Annotated[
        list[Path] | None, typer.Argument(help="Folders; without any, the one that ships.")
    ] = None,
    examples: Annotated[int, typer.Option(help="Held-out examples.", min=2)] = 200,
    steps: Annotated[int, typer.Option(help="Denoise steps.", min=1)] = 4,
    full: Annotated[
        bool, typer.Option(help="Other numbers of steps, guidance, and all kinds of prompts too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure checkpoints on drawings that no training used, all on the same ones."""
    from vtryon_services.mannequin import evaluate as measuring

    console = Console(stderr=True)
    folders: list[Path | None] = [*checkpoints] if checkpoints else [None]
    reports = {
        str(folder or "shipped"): asyncio.run(
            measuring.evaluate(folder, examples, steps, console, full=full)
        )
        for folder in folders
    }
    if as_json:
        found = {name: report.as_json() for name, report in reports.items()}
        Console().print_json(json.dumps(found))
    else:
        measuring.show(reports, Console())


@app.command()
def strip(
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")],
    rows: Annotated[int, typer.Option(help="Examples.", min=1)] = 12,
) -> None:
    """Draw held-out examples through the whole mesh: person, garment, result, truth."""
    from vtryon_services.mannequin.strip import draw_strip

    out.parent.mkdir(parents=True, exist_ok=True)
    draw_strip(rows).save(out)
    Console().print(f"{out}: {rows} examples", highlight=False)


@app.command()
def package(
    folder: Annotated[Path, typer.Argument(help="A checkpoint.", exists=True, file_okay=False)],
) -> None:
    """Finish a checkpoint: fit its preview map, write geometry.json and digests.json."""
    from vtryon_services.mannequin.package import package as finish

    finish(folder)
    Console().print(f"{folder} is ready", highlight=False)


_Folder = Annotated[Path, typer.Argument(help="Folder of the run; made if it is not there.")]
_Start = Annotated[
    Path | None, typer.Option(help="Checkpoint to go on from, instead of anew.", exists=True)
]
_Device = Annotated[str | None, typer.Option(help="A torch device; the GPU if there is one.")]
_Batch = Annotated[int, typer.Option(help="Rows of a training step.", min=1)]
_Rate = Annotated[float, typer.Option(help="Learning rates, in units of the usual ones.", min=0)]
_Plain = Annotated[bool, typer.Option("--plain", help="fp32, nothing compiled.")]
_Examples = Annotated[int, typer.Option(help="Encoded for the transformer.", min=1)]
_VaeSteps = Annotated[int, typer.Option(help="Steps of the VAE.", min=1)]
_TransformerSteps = Annotated[int, typer.Option(help="Steps of the transformer.", min=1)]
_DecoderSteps = Annotated[int, typer.Option(help="Steps of the decoder alone.", min=1)]


def _make(run: Path, parts: tuple[str, ...], **given: Any) -> None:
    from vtryon_services.mannequin.training.run import Run, Settings

    making = Run(run, Settings.of(**given), Console(stderr=True))
    for part in parts:
        making.make(part)


@train.command("vae")
def train_vae(
    run: _Folder,
    start: _Start = None,
    device: _Device = None,
    batch: _Batch = 32,
    rate: _Rate = 1.0,
    plain: _Plain = False,
    vae_steps: _VaeSteps = 7000,
) -> None:
    """Train the VAE on crops of drawings."""
    _make(
        run,
        ("vae",),
        start=start,
        device=device,
        batch=batch,
        rate=rate,
        plain=plain,
        vae_steps=vae_steps,
    )


@train.command("transformer")
def train_transformer(
    run: _Folder,
    start: _Start = None,
    device: _Device = None,
    batch: _Batch = 32,
    rate: _Rate = 1.0,
    plain: _Plain = False,
    examples: _Examples = 65_280,
    transformer_steps: _TransformerSteps = 20_000,
) -> None:
    """Encode examples with the run's VAE, then train the transformer on them."""
    _make(
        run,
        ("pool", "transformer"),
        start=start,
        device=device,
        batch=batch,
        rate=rate,
        plain=plain,
        examples=examples,
        transformer_steps=transformer_steps,
    )


@train.command("decoder")
def train_decoder(
    run: _Folder,
    device: _Device = None,
    batch: _Batch = 32,
    rate: _Rate = 1.0,
    plain: _Plain = False,
    decoder_steps: _DecoderSteps = 1000,
) -> None:
    """Train the run's decoder alone, and put the checkpoint together."""
    _make(
        run,
        ("decoder", "checkpoint"),
        device=device,
        batch=batch,
        rate=rate,
        plain=plain,
        decoder_steps=decoder_steps,
    )


@train.command("all")
def train_all(
    run: _Folder,
    start: _Start = None,
    device: _Device = None,
    batch: _Batch = 32,
    rate: _Rate = 1.0,
    plain: _Plain = False,
    examples: _Examples = 65_280,
    vae_steps: _VaeSteps = 7000,
    transformer_steps: _TransformerSteps = 20_000,
    decoder_steps: _DecoderSteps = 1000,
) -> None:
    """Train everything, one part after the other."""
    _make(
        run,
        ("vae", "pool", "transformer", "decoder", "checkpoint"),
        start=start,
        device=device,
        batch=batch,
        rate=rate,
        plain=plain,
        examples=examples,
        vae_steps=vae_steps,
        transformer_steps=transformer_steps,
        decoder_steps=decoder_steps,
    )
