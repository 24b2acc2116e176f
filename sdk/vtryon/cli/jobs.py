"""`vtryon jobs`: try-ons that outlive the command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress

from vtryon.cli.connection import Connection, ServerOption, TlsCaOption, TlsOption, server
from vtryon.cli.console import PlainConsole, text_column, whole_table
from vtryon.cli.files import check_writable, save_picture
from vtryon.cli.options import ALL, with_options
from vtryon.cli.try_on import exit_code_of, format_of, report_failure
from vtryon.client import Client
from vtryon.errors import RequestError, SettingsError, VtryonError
from vtryon.events import StepFinished
from vtryon.files import strict
from vtryon.files.jsonable import plain
from vtryon.jobs import Job, Jobs, JobState
from vtryon.types import ImageFormat

app = typer.Typer(
    help="Submit, watch, cancel and fetch jobs: try-ons that continue without their client.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_Id = Annotated[str, typer.Argument(help="Id of the job, as printed by `submit` and `list`.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, without progress.")]


@app.command()
@with_options(*ALL)
def submit(
    person: Annotated[Path, typer.Argument(help="Picture of the person: PNG, JPEG or WebP.")],
    garment: Annotated[list[Path], typer.Argument(help="Picture of the garment; up to three.")],
    options: dict[str, Any],
    request_id: Annotated[
        str,
        typer.Option(help="Idempotency key: submitting twice with the same id creates one job."),
    ] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="<key>=<value>", help="Label to store with the job; up to 16."),
    ] = None,
    format: Annotated[  # noqa: A002
        ImageFormat | None, typer.Option(help="Format of the result. Default: png.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Deadline in seconds, including queueing and retries. Default: the server's."
        ),
    ] = None,
    endpoint: ServerOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    as_json: _Json = False,
) -> None:
    """Submit a job, and print its id."""
    labels = _labels(label or [])

    async def work(client: Client) -> None:
        job = await client.jobs.create(
            person,
            garment,
            request_id=request_id,
            timeout_seconds=timeout,
            labels=labels,
            format=format,
            previews=False,
            **strict.arguments(options),
        )
        typer.echo(json.dumps(plain(job)) if as_json else job.id)

    _run(work, server(endpoint, tls, tls_ca), as_json=as_json)


def _labels(given: Sequence[str]) -> dict[str, str]:
    pairs = [one.partition("=") for one in given]
    for text, (key, equals, _) in zip(given, pairs, strict=True):
        if not (key and equals):
            raise typer.BadParameter(f"{text!r} is not <key>=<value>", param_hint="--label")
    found = {key: value for key, _, value in pairs}
    if len(found) != len(pairs):
        raise typer.BadParameter("a key is given twice", param_hint="--label")
    return found


@app.command()
def show(
    job: _Id,
    endpoint: ServerOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    as_json: _Json = False,
) -> None:
    """Show a job as it is now."""
    connection = server(endpoint, tls, tls_ca)
    _run_one(lambda jobs: jobs.get(job), connection, as_json=as_json)


@app.command("list")
def list_jobs(
    state: Annotated[
        list[JobState] | None, typer.Option(help="Only jobs in this state; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of jobs, newest first.")] = 20,
    endpoint: ServerOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    as_json: _Json = False,
) -> None:
    """List jobs, the newest first."""

    async def work(client: Client) -> None:
        found: list[Job] = []
        async for job in client.jobs.list(states=state or ()):
            found.append(job)
            if len(found) == limit:
                break
        _print(found, as_json=as_json)

    _run(work, server(endpoint, tls, tls_ca), as_json=as_json)


@app.command()
def watch(
    job: _Id,
    from_sequence: Annotated[
        int, typer.Option(min=0, help="Sequence number of the first update to show.")
    ] = 0,
    endpoint: ServerOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per update.")
    ] = False,
) -> None:
    """Watch a job until it has ended; exits with 1 unless it succeeded."""
    ended: list[JobState | None] = []

    async def work(client: Client) -> None:
        updates = client.jobs.watch(job, from_sequence=from_sequence)
        columns = (
            text_column("{task.description}"),
            BarColumn(),
            text_column("{task.fields[step]}"),
        )
        console = PlainConsole(stderr=True, quiet=as_json)
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(job, total=None, step="")
            async for update in updates:
                if as_json:
                    typer.echo(json.dumps(plain(update)))
                if update.job is not None:
                    ended[:] = [update.job.state]
                    progress.update(task, description=f"{job} {update.job.state}")
                if isinstance(update.event, StepFinished):
                    done, steps = update.event.step, update.event.steps
                    progress.update(task, completed=done, total=steps, step=f"{done} of {steps}")

    _run(work, server(endpoint, tls, tls_ca), as_json=as_json)
    if ended != [JobState.SUCCEEDED]:
        raise typer.Exit(1)


@app.command()
def cancel(
    job: _Id,
    endpoint: ServerOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    as_json: _Json = False,
) -> None:
    """Cancel a job; one that has ended stays as it is."""
    connection = server(endpoint, tls, tls_ca)
    _run_one(lambda jobs: jobs.cancel(job), connection, as_json=as_json)


@app.command()
def erase(
    job: _Id,
    endpoint: ServerOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    as_json: _Json = False,
) -> None:
    """Cancel a job, and erase its pictures and prompts."""
    connection = server(endpoint, tls, tls_ca)
    _run_one(lambda jobs: jobs.erase(job), connection, as_json=as_json)


@app.command()
def fetch(
    job: _Id,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file: .png, .jpg or .webp.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    endpoint: ServerOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
) -> None:
    """Fetch the picture of a job that succeeded."""

    async def work(client: Client) -> None:
        check_writable(out)
        found = await (client.jobs.wait(job) if wait else client.jobs.get(job))
        kind = found.picture.format if found.picture else None
        if kind is not None and format_of(out) is not kind:
            raise RequestError(f"the picture is a {kind}, and {out.name} says something else")
        save_picture(await client.jobs.picture(job), out)
        PlainConsole(stderr=True).say(f"{out}: written")

    _run(work, server(endpoint, tls, tls_ca), as_json=False)


def _run_one(
    verb: Callable[[Jobs], Awaitable[Job]], connection: Connection, *, as_json: bool
) -> None:
    async def work(client: Client) -> None:
        _print([await verb(client.jobs)], as_json=as_json)

    _run(work, connection, as_json=as_json)


def _print(jobs: list[Job], *, as_json: bool) -> None:
    if as_json:
        for job in jobs:
            typer.echo(json.dumps(plain(job)))
        return
    table = whole_table("job", "state", "step", "created", "attempts", "why", wrapped=("why",))
    for job in jobs:
        created = job.created_at.strftime("%Y-%m-%d %H:%M:%S") if job.created_at else ""
        step = f"{job.step}/{job.steps}" if job.steps else ""
        why = f"{job.error.reason}: {job.error.message}" if job.error else ""
        table.add_row(job.id, str(job.state), step, created, str(job.attempts), why)
    PlainConsole().show_table(table)


def _run(
    work: Callable[[Client], Awaitable[None]], connection: Connection, *, as_json: bool
) -> None:
    async def connected() -> None:
        if connection.endpoint is None:
            raise SettingsError("jobs outlive this command: name a mesh that runs by --endpoint")
        async with connection.client() as client:
            await work(client)

    try:
        asyncio.run(connected())
    except VtryonError as error:
        report_failure(error, PlainConsole(stderr=True), as_json=as_json)
        raise typer.Exit(exit_code_of(error)) from None
