"""The pages of REST and of Kafka's topics, from the OpenAPI and AsyncAPI documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from generators.tables import cell
from vtryon_services.bridges.rest.app import create_app
from vtryon_services.bridges.rest.settings import RestSettings

_ASYNCAPI = Path(__file__).parents[2] / "protos" / "kafka" / "asyncapi.yaml"
_REST = """# REST routes

A running bridge serves the whole OpenAPI document at `/openapi.json` and `/docs`; these are its
routes and parameters.
"""
_TOPICS = """# Kafka topics

Values are Avro in Confluent's wire format; `protos/kafka` has the schemas and the AsyncAPI document
from which this page is made. Topic names begin with `VTRYON_KAFKA_PREFIX`.

| topic | message | partitions | largest message in bytes | retention in hours |
|---|---|---|---|---|
"""


def rest_page() -> str:
    """Write a section per route."""
    paths = create_app(RestSettings()).openapi()["paths"]
    sections = [
        _route(method.upper(), path, operation)
        for path, operations in paths.items()
        for method, operation in operations.items()
    ]
    return "\n".join([_REST, *sections])


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    about = " ".join((operation.get("description") or operation.get("summary", "")).split())
    bodies = ", ".join(f"`{kind}`" for kind in operation.get("requestBody", {}).get("content", {}))
    answers = ", ".join(operation["responses"])
    rows = "".join(_parameter(one) for one in operation.get("parameters", ()))
    lines = [f"## {method} {path}", "", about, ""]
    if bodies:
        lines += [f"Body: {bodies}.", ""]
    lines += [f"Statuses: {answers}.", ""]
    if rows:
        lines += ["| parameter | in | type | description |\n|---|---|---|---|\n" + rows]
    return "\n".join(lines)


def _parameter(one: dict[str, Any]) -> str:
    kind = one.get("schema", {}).get("type", "")
    about = cell(one.get("description", ""))
    return f"| `{one['name']}` | {one['in']} | {kind} | {about} |\n"


def topics_page() -> str:
    """Write a row per topic."""
    channels = yaml.safe_load(_ASYNCAPI.read_text())["channels"]
    return _TOPICS + "".join(map(_topic, channels.values()))


def _topic(channel: dict[str, Any]) -> str:
    kafka = channel.get("bindings", {}).get("kafka", {})
    limits = kafka.get("topicConfiguration", {})
    hours = limits.get("retention.ms", 0) // 3_600_000 or ""
    messages = ", ".join(f"`{name}`" for name in channel["messages"])
    return (
        f"| `{channel['address']}` | {messages} | {kafka.get('partitions', '')} "
        f"| {limits.get('max.message.bytes', '')} | {hours} |\n"
    )
