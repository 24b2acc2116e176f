"""The command: its own subcommands, and those of the entry-point group `vtryon.commands`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

import vtryon
from vtryon.cli.batch import batch
from vtryon.cli.jobs import app as jobs_app
from vtryon.cli.stage import app as stage_app
from vtryon.cli.try_on import try_on
from vtryon.cli.workflow import app as workflow_app

app = typer.Typer(
    name="vtryon",
    help="Virtual try-on: two pictures and a sentence in, one picture out.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
app.command("try-on")(try_on)
app.command("batch")(batch)
app.add_typer(stage_app, name="stage")
app.add_typer(jobs_app, name="jobs")
app.add_typer(workflow_app, name="workflow")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vtryon {vtryon.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Take what counts for every subcommand."""


def _add(entry: EntryPoint) -> None:
    try:
        command = entry.load()
    except ModuleNotFoundError as error:
        app.command(entry.name, help="(not installed: needs an extra)")(_missing(entry, error))
        return
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=entry.name)
    else:
        app.command(entry.name)(command)


def _missing(entry: EntryPoint, error: ModuleNotFoundError) -> Callable[[], None]:
    def command() -> None:
        raise SystemExit(
            f"`vtryon {entry.name}` needs the package {error.name}: "
            "pip install 'vtryon[server,cli]'"
        )

    return command


def run() -> None:
    """Collect the subcommands and run the one asked for."""
    for entry in sorted(entry_points(group="vtryon.commands"), key=lambda entry: entry.name):
        _add(entry)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
