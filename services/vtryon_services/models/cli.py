"""`vtryon models`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtryon.cli.console import PlainConsole
from vtryon_services.engine.dtypes import DtypeName

if TYPE_CHECKING:
    from vtryon_services.engine.checkpoint import Checkpoint

app = typer.Typer(
    help="Create checkpoints with random weights, and export models.", rich_markup_mode=None
)


@app.command()
def make(
    folder: Annotated[Path, typer.Argument(help="Output folder; must not exist.")],
    like: Annotated[
        str, typer.Option(help="Architecture: qwen-image-edit-2511 (58 GB), 1b (10 GB), tiny.")
    ] = "qwen-image-edit-2511",
    random: Annotated[
        bool,
        typer.Option(
            "--random",
            help="Use random weights: suitable to measure speed, not to generate pictures.",
        ),
    ] = False,
    dtype: Annotated[DtypeName, typer.Option(help="Element type of the weights.")] = "bf16",
    layers: Annotated[
        int | None,
        typer.Option(help="Layers of the transformer. Default: the architecture's.", min=1),
    ] = None,
    device: Annotated[
        str, typer.Option(help="torch device on which weights are generated: a GPU is faster.")
    ] = "cpu",
) -> None:
    """Write a checkpoint with a real model's architecture and geometry, and random weights."""
    from vtryon_services.models.architectures import ARCHITECTURES

    if not random:
        raise typer.BadParameter("only random weights can be made; say --random")
    if like not in ARCHITECTURES:
        raise typer.BadParameter(
            f"{like}; it takes {', '.join(ARCHITECTURES)}", param_hint="--like"
        )
    if folder.exists():
        raise typer.BadParameter(f"{folder} exists; name another folder", param_hint="FOLDER")
    from vtryon_services.engine.placement import DTYPES
    from vtryon_services.models.make import make_random

    console = PlainConsole(stderr=True)
    with console.status("") as status:
        try:
            make_random(
                folder,
                like,
                dtype=DTYPES[dtype],
                layers=layers,
                device=device,
                report=lambda part: status.update(f"making {part}"),
            )
        except FileExistsError as error:
            raise typer.BadParameter(str(error), param_hint="FOLDER") from error
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    PlainConsole().say(f"{folder}: {like}, {dtype}, {size / 1e9:.2f} GB")


@app.command()
def export_triton(
    out: Annotated[Path, typer.Argument(help="Output folder; must be empty or missing.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint: a folder in diffusers layout, hf://org/name[@revision], or "
            "comfyui:FOLDER. Default: the small checkpoint in the package."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help='"cpu", or "cuda" for a GPU per instance.')] = "cpu",
    dtype: Annotated[DtypeName, typer.Option(help="Element type of the weights.")] = "fp32",
    threads: Annotated[
        int, typer.Option(help="torch CPU threads of each model. 0: torch's default.")
    ] = 0,
    batch: Annotated[
        int, typer.Option(help="Maximum batch size of encoders and decoder.", min=1)
    ] = 16,
    queue_delay: Annotated[
        float, typer.Option(help="Seconds that encoders wait for further requests to batch.", min=0)
    ] = 0.0,
    slots: Annotated[int, typer.Option(help="Maximum batch size of the sampler.", min=1)] = 16,
    gpus: Annotated[str, typer.Option(help="GPUs to use, as in 0,1. Default: all.")] = "",
    instances: Annotated[
        int, typer.Option(help="Instances of each encoder and decoder, per GPU.", min=1)
    ] = 1,
    priorities: Annotated[
        int,
        typer.Option(
            help="Priority levels of encoders and decoder; release 24.10 is slow with any.", min=0
        ),
    ] = 0,
    response_cache: Annotated[
        bool,
        typer.Option(help="Let a server with --cache-config cache the encoders' responses."),
    ] = False,
    warm_up: Annotated[
        bool, typer.Option(help="Warm each model up with a request when it loads.")
    ] = True,
) -> None:
    """Write a model repository for Triton: four models of the Python backend over the engine."""
    from vtryon.errors import SettingsError

    try:
        numbers = tuple(int(one) for one in gpus.split(",") if one.strip())
    except ValueError as error:
        raise typer.BadParameter(f"{gpus}; it takes 0,1", param_hint="--gpus") from error
    try:
        opened = _open(checkpoint)
    except SettingsError as error:
        raise typer.BadParameter(str(error), param_hint="--checkpoint") from error
    from vtryon_services.triton.export import Options, export

    options = Options(
        device,
        dtype,
        threads,
        batch,
        queue_delay,
        slots,
        gpus=numbers,
        instances=instances,
        priorities=priorities,
        response_cache=response_cache,
        warm_up=warm_up,
    )
    try:
        models = export(opened, out, options)
    except FileExistsError as error:
        raise typer.BadParameter(str(error), param_hint="OUT") from error
    except SettingsError as error:
        raise typer.BadParameter(str(error), param_hint="--checkpoint") from error
    names = ", ".join(model.name for model in models)
    PlainConsole().say(f"{out}: {names}; `vtryon triton up {out}` serves it")


@app.command()
def check(
    repository: Annotated[Path, typer.Argument(help="Model repository.", exists=True)],
    timeout: Annotated[
        float, typer.Option(help="Timeout in seconds for the models to load.")
    ] = 300,
) -> None:
    """Load a model repository in a real Triton server, and say whether it holds."""
    from vtryon.errors import SettingsError
    from vtryon_services.triton.server import serve

    console = PlainConsole(stderr=True)
    try:
        with serve(repository) as running, console.status("loading models"):
            running.wait_until_ready(timeout)
    except SettingsError as error:
        console.say_error(str(error))
        raise typer.Exit(2) from None
    names = sorted(path.name for path in repository.iterdir() if path.is_dir())
    PlainConsole().say(f"{repository}: {', '.join(names)} load")


@app.command()
def export_onnx(
    stage: Annotated[
        str, typer.Argument(help="latent-encoder, text-encoder, sampling, decoding, or all.")
    ],
    out: Annotated[Path, typer.Argument(help="Model repository to add to.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint: a folder in diffusers layout, hf://org/name[@revision], or "
            "comfyui:FOLDER. Default: the small checkpoint in the package."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help='"cuda": export there, and for Triton with TensorRT; or "cpu".')
    ] = "cpu",
    dtype: Annotated[DtypeName, typer.Option(help="Element type of the weights.")] = "fp32",
    check: Annotated[
        bool, typer.Option(help="Run the graph with onnxruntime, and compare it with torch.")
    ] = True,
) -> None:
    """Export a stage's computation as ONNX, checked against torch, with the command for TensorRT.

    The VAE's two halves, the language model with its vision tower, and one step of the
    transformer; one graph for every size and batch. Pre- and post-processing (pictures,
    tokens, schedule, guidance) stays in the services.
    """
    from vtryon.errors import SettingsError
    from vtryon.types import Stage

    console = PlainConsole(stderr=True)
    stages = [one for one in Stage if one is not Stage.PIPELINE and stage in {one, "all"}]
    if not stages:
        raise typer.BadParameter(f"{stage}; see --help", param_hint="STAGE")
    try:
        opened = _open(checkpoint)
        from vtryon_services.engine.placement import Placement
        from vtryon_services.models.graphs import make_graph
        from vtryon_services.models.onnx_export import export_onnx as export

        placement = Placement.of(device, dtype, keep_fp8=False)
        for one in stages:
            with console.status(f"exporting {one}"):
                graph = make_graph(one, opened, placement)
                folder, difference = export(
                    graph, out, device=device, dtype=placement.dtype, check=check
                )
            said = (
                "not checked" if difference is None else f"differs from torch by {difference:.1e}"
            )
            PlainConsole().say(f"{folder}: written, {said}")
    except FileExistsError as error:
        raise typer.BadParameter(str(error), param_hint="OUT") from error
    except SettingsError as error:
        console.say_error(str(error))
        raise typer.Exit(2) from None


def _open(text: str | None) -> Checkpoint:
    """Open a checkpoint; reject a bad folder before the import of torch, which takes seconds.

    Raises:
        SettingsError: there is no checkpoint that can be used.
    """
    from vtryon.checkpoint_source import parse_source
    from vtryon_services.engine.sources import check_source

    source = None if text is None else parse_source(text)
    if source is not None:
        check_source(source)
    from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint

    return Checkpoint.open(source or SHIPPED_CHECKPOINT)
