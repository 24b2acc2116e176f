"""`vtryon workflow`: graphs of ComfyUI as requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vtryon.cli.console import PlainConsole, whole_table
from vtryon.cli.files import check_writable, write_file
from vtryon.cli.requests import describe
from vtryon.cli.try_on import exit_code_of, report_failure
from vtryon.errors import VtryonError
from vtryon.files.jsonable import plain
from vtryon.files.text import read_json
from vtryon.workflow.graph import Graph
from vtryon.workflow.meaning import Reading
from vtryon.workflow.request import NodeReport

app = typer.Typer(
    help="Import requests from ComfyUI graphs.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("import")
def import_graph(
    graph: Annotated[
        Path, typer.Argument(help="ComfyUI graph, in the editor's or the API's format.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output file of the request, JSON.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            help="Type of nodes to leave out although the picture will differ; repeatable."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print request and nodes as JSON.")
    ] = False,
) -> None:
    """Read a graph for Qwen-Image-Edit: the meaning of each node, and the resulting request.

    A node or a value that can't be honoured is named, and nothing is written. Use the request by
    `vtryon try-on person.png garment.png --request FILE`.
    """
    console = PlainConsole(stderr=True)
    reading: Reading | None = None
    try:
        if out is not None:
            check_writable(out)
        reading = Reading(Graph.read(read_json(graph)), without or ())
        request = reading.read()
        described = describe(request)
        if out is not None:
            write_file(out, (json.dumps(described, indent=2) + "\n").encode())
    except VtryonError as error:
        if reading is not None and not as_json:
            console.show_table(_table(reading.lines))
        report_failure(error, console, as_json=as_json)
        raise typer.Exit(exit_code_of(error)) from None
    notes = reading.notes
    if as_json:
        found = {"request": described, "nodes": plain(reading.lines), "notes": notes}
        typer.echo(json.dumps(found))
        return
    console.show_table(_table(reading.lines))
    for note in notes:
        console.say(f"note: {note}")
    if out is None:
        typer.echo(json.dumps(described, indent=2))
    else:
        console.say(f"{out}: written")


def _table(lines: list[NodeReport]) -> Table:
    table = whole_table("node", "type", "becomes", wrapped=("becomes",))
    for line in lines:
        colour = "red" if line.refused else "none"
        table.add_row(line.node, line.type, line.becomes, style=colour)
    return table
