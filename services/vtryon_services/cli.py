"""`vtryon serve`."""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from vtryon.catalog import BRIDGES, CATALOG, EMBEDDABLE
from vtryon.cli.console import PlainConsole
from vtryon.errors import SettingsError
from vtryon.types import Stage

_FLAGS = {"loras": "lora"}  # settings whose option has another name


def serve(
    stages: Annotated[
        list[str],
        typer.Argument(
            metavar="STAGE...",
            help="latent-encoder, text-encoder, sampling, decoding, pipeline; all; jobs. In a "
            "process of their own: rest, kafka.",
        ),
    ],
    listen: Annotated[
        str | None, typer.Option(help="Address to serve on: host:port; port 0 uses a free one.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="Where stages compute: torch (this process), triton (the server at "
            "VTRYON_TRITON_URL) or scripted (no model, fixed times). Default: torch."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint: a folder in diffusers layout, hf://org/name[@revision], or "
            "comfyui:FOLDER. Default: the small checkpoint in the package."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help='torch device: "cpu" or "cuda". Default: cpu.')
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Element type of the weights: fp32, bf16 or fp16. Default: fp32."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PATH",
            help="LoRA file that requests can choose by name. Default name: the file's. "
            "Repeatable.",
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="development or production. Default: development.")
    ] = None,
    topology: Annotated[
        str | None,
        typer.Option(help="Of the pipeline: direct or ensemble; of kafka: hybrid or kafka."),
    ] = None,
) -> None:
    """Serve one or several stages from this process, on one address.

    All other settings are variables, such as VTRYON_SAMPLING_MAX_WAITING or VTRYON_MAX_WAITING; an
    unknown name stops the start and lists the known ones. The pipeline finds stages in its own
    process, and others at VTRYON_PIPELINE_SAMPLING_TARGET and the like.
    """
    options = {
        "listen": listen,
        "backend": backend,
        "checkpoint": checkpoint,
        "device": device,
        "dtype": dtype,
        "loras": lora or None,
        "profile": profile,
        "topology": topology,
    }
    given = {name: value for name, value in options.items() if value is not None}
    try:
        alone = len(stages) == 1 and stages[0] in BRIDGES
        asyncio.run(_serve_bridge(stages[0], given) if alone else _serve(_stages(stages), given))
    except SettingsError as error:
        PlainConsole(stderr=True).say_error(str(error))
        raise typer.Exit(2) from None


async def _serve(stages: Sequence[str], given: dict[str, Any]) -> None:
    from vtryon_services.host import host, load_settings
    from vtryon_services.rpc.process import serve as serve_process

    _refuse_unread(stages, given)
    first = Stage.PIPELINE if Stage.PIPELINE in stages else stages[0]
    settings = load_settings(stages, given)[first]
    await serve_process(settings, host(settings, stages, settings.listen, **given))


async def _serve_bridge(name: str, given: dict[str, Any]) -> None:
    entry = CATALOG[name]
    begin, settings_type = map(pkgutil.resolve_name, (entry.factory, entry.settings))
    from vtryon_services.rpc.process import serve as serve_process

    settings = settings_type.load(**given)
    await serve_process(settings, begin(settings))


def _refuse_unread(stages: Sequence[str], given: dict[str, Any]) -> None:
    """Reject an option that no named service has; `--backend` may apply to all of them."""
    from vtryon_services.host import settings_of

    known = {"backend"}.union(*(settings_of(name).model_fields for name in stages))
    for name, value in given.items():
        if name not in known:
            shown = " ".join(value) if isinstance(value, list) else value
            raise SettingsError(
                f"--{_FLAGS.get(name, name)} {shown}: {', '.join(stages)} has no such setting: "
                "leave it out, or give it to the service that has it (`vtryon serve --help`)"
            )


def _stages(names: Sequence[str]) -> list[str]:
    named = [one for name in names for one in (Stage if name == "all" else [name])]
    unknown = [name for name in named if name not in EMBEDDABLE]
    if unknown:
        known = ", ".join(Stage)
        raise SettingsError(
            f"no stage {', '.join(unknown)}; there are {known}, all; and alone {', '.join(BRIDGES)}"
        )
    return list(dict.fromkeys(named))
