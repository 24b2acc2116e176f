"""`vtryon batch`: a folder of pairs, or a manifest, to a folder of results."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vtryon.batch.entries import LAYOUTS, BatchEntry, Found, Layout, find_entries, nothing_found
from vtryon.batch.journal import Journal, JournalLine
from vtryon.batch.work import Batch, BatchCounts, failed_line, watch
from vtryon.cli.connection import (
    CheckpointOption,
    Connection,
    EndpointOption,
    TlsCaOption,
    TlsOption,
)
from vtryon.cli.console import PlainConsole, text_column
from vtryon.cli.files import write_file
from vtryon.cli.options import ALL, with_options
from vtryon.cli.progress import describe_unused
from vtryon.cli.sheets import sheet
from vtryon.cli.try_on import exit_code_of, report_failure
from vtryon.errors import VtryonError
from vtryon.events import UnusedOption
from vtryon.types import ImageFormat

_SHOWN = 24
_LOOK_SECONDS = 1.0
_SHOWN_UNUSED = 20


@with_options(*ALL)
def batch(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="A folder in one of the layouts, or a manifest .jsonl or .csv. An empty cell of "
            "a CSV counts as unset, quoted or not; a space is text. For an empty negative "
            "prompt use a space, or JSONL, in which null counts as unset and an empty "
            "string is a value.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of results.")],
    options: dict[str, Any],
    layout: Annotated[Layout, typer.Option(help=f"Of a folder. {LAYOUTS}.")] = Layout.PAIRS,
    format: Annotated[  # noqa: A002
        ImageFormat, typer.Option(help="Format of the results. Default: png.")
    ] = ImageFormat.PNG,
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="Maximum concurrent try-ons.")
    ] = 8,
    watching: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Keep looking for new entries until Ctrl-C; there may be none at first. A "
            "manifest's last line counts once it ends in a line break, or is complete JSON.",
        ),
    ] = False,
    endpoint: EndpointOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    checkpoint: CheckpointOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON, without progress.")
    ] = False,
) -> None:
    """Do many try-ons, from files to files.

    Options of the command are those of entries without their own.

    Run it again to do the missing ones: results with the same pictures, options, version and models
    are kept. OUT gets report.json and contact-sheet.png. Exit code 1 if an entry failed, 2 if the
    input is unusable.
    """
    console = PlainConsole(stderr=True)
    connection = Connection(endpoint, tls, tls_ca, checkpoint)
    progress = _progress(PlainConsole(stderr=True, quiet=as_json))
    interrupted = False
    try:
        found = find_entries(source, layout, growing=watching)
        if not found.entries and not watching:
            raise nothing_found(source)
        journal = Journal.open(out)
        wanted = _Wanted(
            source, layout, found.entries, out, journal, options, format, concurrency, watching
        )
        try:
            with progress:
                asyncio.run(_run(wanted, connection, progress))
        except KeyboardInterrupt:
            interrupted = True
        if watching:
            found = _entries_at_end(source, layout)
        report = _report(found, journal, out)
    except VtryonError as error:
        report_failure(error, console, as_json=as_json)
        raise typer.Exit(exit_code_of(error)) from None
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report, out, console)
    if interrupted:
        raise typer.Exit(0 if watching else 130)
    if report["failed"]:
        tried = any(not entry.problem for entry in found.entries)
        raise typer.Exit(1 if tried else 2)


@dataclass(frozen=True, slots=True)
class _Wanted:
    source: Path
    layout: Layout
    entries: list[BatchEntry]
    out: Path
    journal: Journal
    options: dict[str, Any]
    format: ImageFormat
    concurrency: int
    watching: bool


async def _run(wanted: _Wanted, connection: Connection, progress: Progress) -> None:
    bar = progress.add_task("starting the mesh", total=None, note="")

    def tell(line: JournalLine, counts: BatchCounts) -> None:
        said = [f"{counts.failed} failed"] if counts.failed else []
        said += [f"{counts.skipped} there already"] if counts.skipped else []
        progress.update(bar, advance=1, note=", ".join(said))
        if line.failed:
            progress.console.print(f"{line.name}: {line.message}", soft_wrap=True)

    async with connection.client() as client:
        work = Batch(
            client,
            wanted.out,
            wanted.journal,
            wanted.options,
            wanted.format,
            wanted.concurrency,
            tell=tell,
        )
        total = None if wanted.watching else len(wanted.entries)
        progress.update(bar, description="try-ons", total=total)
        todo: Iterable[BatchEntry] | AsyncIterator[BatchEntry] = wanted.entries
        if wanted.watching:
            todo = watch(
                lambda: find_entries(wanted.source, wanted.layout, growing=True).entries,
                _LOOK_SECONDS,
                lambda one: one.key(work.common),
            )
        await work.run(todo)


def _progress(console: PlainConsole) -> Progress:
    return Progress(
        text_column("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        text_column("left"),
        TimeRemainingColumn(),
        text_column("{task.fields[note]}", style="dim"),
        console=console,
    )


def _entries_at_end(source: Path, layout: Layout) -> Found:
    """Find the entries after watching: an unterminated last line counts, if it can be read."""
    try:
        return find_entries(source, layout)
    except VtryonError:
        return find_entries(source, layout, growing=True)


def _report(found: Found, journal: Journal, out: Path) -> dict[str, Any]:
    """Write report.json and the contact sheet, whole or not at all."""
    for entry in (one for one in found.entries if one.problem):
        journal.report(failed_line(entry))
    entries = found.entries
    lines = [journal.lines[one.name] for one in entries if one.name in journal.current]
    failed = [line for line in lines if line.failed]
    report = {
        "entries": len(entries),
        "succeeded": len(lines) - len(failed),
        "failed": len(failed),
        "missing": len(entries) - len(lines),
        "unused": found.unused,
        "results": [asdict(line) for line in lines],
    }
    write_file(out / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    shown = [path for line in lines if line.out and (path := out / line.out).exists()][:_SHOWN]
    if shown:
        _draw_sheet(shown, out / "contact-sheet.png")
    return report


def _draw_sheet(paths: list[Path], target: Path) -> None:
    from PIL import Image

    pictures = [Image.open(path) for path in paths]
    rows = [pictures[first : first + 8] for first in range(0, len(pictures), 8)]
    buffer = io.BytesIO()
    sheet(rows, height=192).save(buffer, "PNG")
    write_file(target, buffer.getvalue())


def _print(report: dict[str, Any], out: Path, console: PlainConsole) -> None:
    said = f"{report['succeeded']} of {report['entries']} succeeded"
    if report["failed"]:
        said += f", {report['failed']} failed"
    if report["missing"]:
        said += f", {report['missing']} to be done: run it again"
    if report["unused"]:
        shown = ", ".join(report["unused"][:_SHOWN_UNUSED])
        more = " and more" if len(report["unused"]) > _SHOWN_UNUSED else ""
        console.say(f"note: not used: {shown}{more}")
    unused = Counter(
        UnusedOption(**one) for line in report["results"] for one in line["unused_options"]
    )
    for option, count in unused.items():
        console.say(f"note: {describe_unused(option)} ({count} of {report['entries']} entries)")
    console.say(f"{said}; {out}/report.json, {out}/contact-sheet.png")
