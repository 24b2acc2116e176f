"""`vtryon dlq`: list, show and redrive dead letters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vtryon.cli.console import PlainConsole, whole_table
from vtryon.cli.files import check_writable, write_file
from vtryon.cli.try_on import exit_code_of, report_failure
from vtryon.errors import RequestError, VtryonError
from vtryon.files.jsonable import plain

if TYPE_CHECKING:  # a client of Kafka takes its time to load
    from vtryon_services.bridges.kafka.dead_letters import DeadLetter
    from vtryon_services.bridges.kafka.messages import ReceivedMessage
    from vtryon_services.bridges.kafka.settings import KafkaSettings

T = TypeVar("T")
app = typer.Typer(
    help="List, show and redrive dead letters of Kafka topics. Configured by VTRYON_KAFKA_….",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_Work = Annotated[str, typer.Argument(help="`jobs`, or the name of a stage.")]
_Offset = Annotated[int, typer.Argument(help="Offset, as printed by `list`.", min=0)]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Servers = Annotated[
    str | None, typer.Option(help="host:port of a broker. Default: VTRYON_KAFKA_BOOTSTRAP_SERVERS.")
]


@app.command("list")
def list_letters(work: _Work, bootstrap_servers: _Servers = None, as_json: _Json = False) -> None:
    """List dead letters, oldest first."""
    from vtryon_services.bridges.kafka.dead_letters import DeadLetter, DeadLetters

    async def collect(settings: KafkaSettings) -> tuple[list[DeadLetter], int]:
        letters = DeadLetters(settings, work)
        found = [DeadLetter.of(received) async for received in letters.read()]
        return found, await letters.redriven()

    found, redriven = _run(collect, work, bootstrap_servers, as_json=as_json)
    if as_json:
        rows = [{**plain(one), "redriven": one.offset < redriven} for one in found]
        typer.echo(json.dumps(rows, indent=2))
        return
    columns = ("offset", "failed at", "tenant", "request", "reason", "redriven", "message")
    table = whole_table(*columns, wrapped=("message",))
    for one in found:
        again = "yes" if one.offset < redriven else ""
        cells = (str(one.offset), one.failed_at[:19], one.tenant, one.request, one.reason, again)
        table.add_row(*cells, one.message)
    PlainConsole().show_table(table)


@app.command()
def show(
    work: _Work,
    offset: _Offset,
    raw: Annotated[
        Path | None, typer.Option(help="Output file for the message's original bytes.")
    ] = None,
    bootstrap_servers: _Servers = None,
    as_json: _Json = False,
) -> None:
    """Show a dead letter: its error and its fields, without pictures."""
    from vtryon.catalog import JOBS
    from vtryon_services.bridges.kafka.dead_letters import DeadLetter, DeadLetters
    from vtryon_services.bridges.kafka.records import JobRequestRecord, StageRequestRecord
    from vtryon_services.bridges.kafka.schemas import Codec

    async def fetch(settings: KafkaSettings) -> tuple[ReceivedMessage, Any]:
        if raw is not None:
            check_writable(raw)
        received = await DeadLetters(settings, work).one(offset)
        codec = Codec(settings)
        try:
            kind = JobRequestRecord if work == JOBS else StageRequestRecord
            record = (await codec.decode(kind, received.value)).to_record()
        except VtryonError as error:
            record = {"unreadable": error.message}
        finally:
            await codec.close()
        if raw is not None:
            write_file(raw, received.value or b"")
        return received, record

    received, record = _run(fetch, work, bootstrap_servers, as_json=as_json)
    headers = {name: value.decode("utf-8", "replace") for name, value in received.headers.items()}
    shown = {**plain(DeadLetter.of(received)), "headers": headers, "record": _without_bytes(record)}
    typer.echo(json.dumps(shown, indent=None if as_json else 2))


@app.command()
def redrive(
    work: _Work,
    offsets: Annotated[
        list[int] | None,
        typer.Argument(help="Offsets to redrive. Default: all that were not redriven before."),
    ] = None,
    from_stage: Annotated[
        str | None,
        typer.Option(
            help="Earlier stage to restart from, for try-ons that go from stage to stage."
        ),
    ] = None,
    bootstrap_servers: _Servers = None,
    as_json: _Json = False,
) -> None:
    """Send dead letters again, with the bytes that they had; they stay where they are.

    Without offsets, all that were not sent again before are sent. If one can't be sent, the exit
    code is 1 and the next call begins with that letter: later ones, which this call did send, are
    then sent a second time. To pass it over, give the offsets of the others.
    """
    from vtryon_services.bridges.kafka.dead_letters import DeadLetters
    from vtryon_services.bridges.kafka.settings import STAGES

    rows: list[dict[str, Any]] = []
    console = PlainConsole(stderr=True)

    def told(letter: DeadLetter, topic: str, error: VtryonError | None) -> None:
        words = error.message if error else ""
        rows.append({"offset": letter.offset, "sent_to": topic, "error": words})
        if not as_json:
            line = f"{letter.offset} {letter.request} {words if error else f'→ {topic}'}"
            console.say(line, style="red" if error else "")

    async def send(settings: KafkaSettings) -> int:
        if from_stage is not None and from_stage not in STAGES:
            raise RequestError(f"from_stage: takes {', '.join(STAGES)}")
        return await DeadLetters(settings, work).redrive(offsets or (), from_stage, told)

    sent = _run(send, work, bootstrap_servers, as_json=as_json)
    if as_json:
        typer.echo(json.dumps({"sent": sent, "letters": rows}))
    else:
        console.print(f"{sent} sent again")
    if sent < len(rows):
        raise typer.Exit(1)


def _run(
    work: Callable[[KafkaSettings], Coroutine[Any, Any, T]],
    name: str,
    bootstrap_servers: str | None,
    *,
    as_json: bool,
) -> T:
    from vtryon_services.bridges.kafka.settings import WORKS, KafkaSettings
    from vtryon_services.runtime.telemetry import set_up_logs

    given = {} if bootstrap_servers is None else {"bootstrap_servers": bootstrap_servers}
    try:
        if name not in WORKS:
            raise RequestError(f"there are dead letters of {', '.join(WORKS)}")
        settings = KafkaSettings.load(**given)
        flush_logs = set_up_logs(settings)  # standard output is for what was asked for
        try:
            return asyncio.run(work(settings))
        finally:
            flush_logs()
    except VtryonError as error:
        report_failure(error, PlainConsole(stderr=True), as_json=as_json)
        raise typer.Exit(exit_code_of(error)) from None


def _without_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_bytes(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_bytes(one) for one in value]
    return f"{len(value)} bytes" if isinstance(value, bytes) else value
