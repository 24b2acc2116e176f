"""`vtryon try-on`: from two files to one."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from vtryon.cli.connection import (
    CheckpointOption,
    Connection,
    EndpointOption,
    TlsCaOption,
    TlsOption,
)
from vtryon.cli.console import PlainConsole
from vtryon.cli.files import check_writable, save_picture
from vtryon.cli.options import ALL, PREVIEWS, preview_policy, with_options
from vtryon.cli.progress import (
    BESIDE_OTHERS,
    LiveProgress,
    describe_fit,
    describe_unused,
    ledger_table,
    live_progress,
)
from vtryon.cli.requests import RequestFile, read_request
from vtryon.errors import RequestError, SettingsError, VtryonError
from vtryon.events import Event, Preview, StageStarted
from vtryon.files import strict as strict_options
from vtryon.pictures import SUFFIXES, read_picture
from vtryon.run import Result
from vtryon.types import ImageFormat, PreviewPolicy


@dataclass(frozen=True, slots=True)
class TryOnCommand:
    """The command line's request."""

    person: Path
    garments: list[Path]
    out: Path
    previews: Path | None
    preview_policy: PreviewPolicy | None
    options: dict[str, Any]
    connection: Connection
    request: RequestFile | None = None
    strict: bool = False
    notes: list[str] = field(default_factory=list)

    def note(self, departure: str) -> None:
        """Collect remarks for the end, or fail on the first.

        Raises:
            RequestError: the command is strict.
        """
        if departure and self.strict:
            raise RequestError(departure)
        if departure:
            self.notes.append(departure)


@with_options(*ALL, *PREVIEWS)
def try_on(
    person: Annotated[Path, typer.Argument(help="Picture of the person: PNG, JPEG or WebP.")],
    garment: Annotated[list[Path], typer.Argument(help="Picture of the garment; up to three.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file: .png, .jpg or .webp.")],
    options: dict[str, Any],
    request: Annotated[
        Path | None,
        typer.Option(
            help="JSON file of `vtryon workflow import`; options of the command line take "
            "precedence."
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail unless the mesh verifiably honours all of --request. Reasons to fail: "
            "names of weights without digests, other digests, another number of pictures.",
        ),
    ] = False,
    ignore_loras: Annotated[
        bool,
        typer.Option(
            "--ignore-loras",
            help="Ignore the LoRAs of --request, for a checkpoint with merged LoRAs.",
        ),
    ] = False,
    previews: Annotated[
        Path | None, typer.Option(help="Output folder for a preview after each step.")
    ] = None,
    endpoint: EndpointOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    timeout: Annotated[
        float | None,
        typer.Option(help="Deadline of the request in seconds. Default: the server's."),
    ] = None,
    checkpoint: CheckpointOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, without progress.")
    ] = False,
) -> None:
    """Put a garment on a person.

    A bearer token for the endpoint is read from VTRYON_TOKEN.
    """
    console = PlainConsole(stderr=True)
    try:
        policy = preview_policy(previews, options)
        asked = _read_request(request, strict=strict, ignore_loras=ignore_loras)
        job = TryOnCommand(
            person=person,
            garments=garment,
            out=out,
            previews=previews,
            preview_policy=policy,
            options={
                **(asked.options if asked else {}),
                **options,
                **({} if timeout is None else {"timeout_seconds": timeout}),
                "format": format_of(out),
            },
            connection=Connection(endpoint, tls, tls_ca, checkpoint),
            request=asked,
            strict=strict,
        )
        with live_progress(console, quiet=as_json) as progress:
            result = asyncio.run(_run(job, progress))
    except VtryonError as error:
        report_failure(error, console, as_json=as_json)
        raise typer.Exit(exit_code_of(error)) from None
    _report(result, job, console, as_json=as_json)


def _read_request(path: Path | None, *, strict: bool, ignore_loras: bool) -> RequestFile | None:
    if path is None:
        unused = [
            name for name, on in (("--strict", strict), ("--ignore-loras", ignore_loras)) if on
        ]
        if unused:
            raise RequestError(f"{', '.join(unused)} is for a --request, and none is given")
        return None
    found = read_request(path)
    if ignore_loras:
        found = found.without_loras()
    return found


async def _run(job: TryOnCommand, progress: LiveProgress) -> Result:
    check_writable(job.out)
    if job.request is not None:
        paths = [job.person, *job.garments]
        for departure in job.request.departures(paths):
            job.note(departure)
        job.notes.extend(job.request.remarks(paths))
    pictures = [await asyncio.to_thread(read_picture, path) for path in (job.person, *job.garments)]
    progress.wait_for_mesh(embedded=job.connection.endpoint is None)
    async with job.connection.client() as client:
        run = client.try_on(
            pictures[0],
            pictures[1:],
            previews=job.preview_policy or False,
            **strict_options.arguments(job.options),
        )
        async with run:
            async for event in run:
                progress.show(event)
                _check_digest(event, job)
                _keep_preview(event, job.previews)
            result = await run
    save_picture(result.picture, job.out)
    return result


def _check_digest(event: Event, job: TryOnCommand) -> None:
    if job.request is not None and isinstance(event, StageStarted) and event.accepted is not None:
        job.note(job.request.check_digest(event.stage, event.accepted.model_digest))


def format_of(out: Path) -> ImageFormat:
    """Determine a picture's format from its file name.

    Raises:
        RequestError: the extension is not one of a supported format.
    """
    known = SUFFIXES.get(out.suffix.lower())
    if known is None:
        raise RequestError(f"--out {out.name!r} ends in none of {', '.join(SUFFIXES)}")
    return known


def _keep_preview(event: Event, folder: Path | None) -> None:
    if folder is not None and isinstance(event, Preview) and event.picture is not None:
        save_picture(event.picture, folder / f"step-{event.step:03d}.png")


def _report(result: Result, job: TryOnCommand, console: PlainConsole, *, as_json: bool) -> None:
    if as_json:
        described = {
            "out": str(job.out),
            "width": result.picture.size[0],
            "height": result.picture.size[1],
            "seed": result.seed,
            "fits": [asdict(fit) for fit in result.fits],
            "unused_options": [asdict(one) for one in result.unused_options],
            "stages": {stage: asdict(accepted) for stage, accepted in result.stages.items()},
            "ledger": asdict(result.ledger),
            "notes": job.notes,
        }
        typer.echo(json.dumps(described))
        return
    fits = [describe_fit(fit) for fit in result.fits if fit.changed or fit.note]
    unused = [describe_unused(one) for one in result.unused_options]
    for note in (*job.notes, *fits, *unused):
        console.say(f"note: {note}")
    console.print(ledger_table(result.ledger))
    console.print(f" {BESIDE_OTHERS}", style="dim")
    width, height = result.picture.size
    console.say(f"{job.out}: {width}×{height}, seed {result.seed}")


def exit_code_of(error: VtryonError) -> int:
    """Return 2 if the user can correct the error, otherwise 1."""
    return 2 if isinstance(error, RequestError | SettingsError) else 1


def report_failure(error: VtryonError, console: PlainConsole, *, as_json: bool) -> None:
    """Print an error."""
    if as_json:
        described = {"reason": error.reason, "message": error.message, "metadata": error.metadata}
        typer.echo(json.dumps({"error": described}))
        return
    console.say_error(error.message)
    facts = [str(error.reason)] if error.reason else []
    facts += [f"{name} {value}" for name, value in error.metadata.items()]
    console.say(", ".join(facts), style="dim")
