"""The shell's commands in the process of the tests, where a process each would take too long."""

from __future__ import annotations

from functools import cache

from click.testing import Result
from typer.testing import CliRunner

from vtryon.cli.app import app, load_commands


def invoke(*words: object) -> Result:
    """Run a command line; blocks, so call it in a thread beside a mesh of the same process."""
    _load(str(words[0]))
    return CliRunner().invoke(app, [*map(str, words)])


@cache
def _load(command: str) -> None:
    load_commands([command])
