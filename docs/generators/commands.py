"""The page of commands, from the command line itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from generators.tables import cell
from vtryon.cli.app import app, load_commands

_HEAD = """# Command line

All commands with their options, as `--help` prints them.
"""


def page() -> str:
    """Write a section per command."""
    load_commands([])
    return "\n".join([_HEAD, *_sections("vtryon", typer.main.get_command(app))])


def _sections(path: str, command: Any) -> Iterator[str]:
    below = getattr(command, "commands", None)
    if below is None:
        yield f"## {path}\n\n{cell(command.help or '')}\n\n{_table(command)}"
        return
    for name in sorted(below):
        if not below[name].hidden:
            yield from _sections(f"{path} {name}", below[name])


def _table(command: Any) -> str:
    rows = [row for one in command.params if (row := _row(one))]
    head = "| argument or option | description |\n|---|---|\n"
    return head + "".join(rows) if rows else ""


def _row(one: Any) -> str:
    if getattr(one, "hidden", False):
        return ""
    names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
    if one.param_type_name == "argument":
        names = f"`{one.metavar or one.name.upper()}`"
    required = " Required." if one.required else ""
    return f"| {names} | {cell(getattr(one, 'help', '') or '')}{required} |\n"
