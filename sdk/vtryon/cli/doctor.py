"""`vtryon doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from vtryon.checks import Finding, examine
from vtryon.cli.console import PlainConsole, whole_table


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """Show what is installed, which backends can run, and what is missing.

    Exit code 1 if something is missing that the main commands need.
    """
    findings = examine()
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        PlainConsole().show_table(_table(findings))
    if any(not finding.ok and finding.needed for finding in findings):
        raise typer.Exit(1)


def _table(findings: Sequence[Finding]) -> Table:
    table = whole_table("mark", "name", "found", "remedy", wrapped=("found", "remedy"))
    table.show_header = False
    for finding in findings:
        remedy = "" if finding.ok else finding.remedy
        missing = ("✗", "red") if finding.needed else ("–", "")
        mark = Text("✓", "green") if finding.ok else Text(*missing)
        table.add_row(mark, finding.name, finding.found, remedy)
    return table
