"""The pages of errors and of the protocol, from the protos and the table of reasons."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from generators.tables import cell
from vtryon.errors import Reason
from vtryon.wire.status import REASONS
from vtryon_services.bridges.rest.problems import status_of

PROTOS = Path(__file__).parents[2] / "protos" / "vtryon" / "v1"
_REASON = re.compile(r"((?:  //.*\n)+)  ERROR_REASON_(\w+) = \d+;")
_SERVICE = re.compile(r"service (\w+) \{")
_RPC = re.compile(r"  rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\)")
_ERRORS = """# Errors

Every failure has a reason, the same through gRPC (`google.rpc.ErrorInfo`), the SDK
(`error.reason`), REST (`reason` of the problem) and Kafka. OverloadedError and UnavailableError may
succeed when they are retried; `retry_after_seconds` says when.

| reason | class in `vtryon.errors` | gRPC status | HTTP status | meaning |
|---|---|---|---|---|
"""
_PROTOCOL = """# Protocol

All RPCs of package `vtryon.v1`. The grammar of streams, chunks and payloads is specified in
`protos/README.md`; fields are documented in the proto files.
"""


def errors_page() -> str:
    """Write a row per reason."""
    text = (PROTOS / "error_reason.proto").read_text()
    meanings = {name: _words(comment.splitlines()) for comment, name in _REASON.findall(text)}
    return _ERRORS + "".join(_error_row(reason, meanings[reason]) for reason in Reason)


def _error_row(reason: Reason, meaning: str) -> str:
    error, status = REASONS[reason]
    http = status_of(error("", reason=reason))
    return f"| `{reason}` | {error.__name__} | {status.name} | {http} | {meaning} |\n"


def protocol_page() -> str:
    """Write a section per service."""
    lines = [line for path in sorted(PROTOS.glob("*.proto")) for line in _services(path)]
    return "\n".join([_PROTOCOL, *lines])


def _services(path: Path) -> Iterator[str]:
    """Write the services of a file; comments are the lines directly above."""
    comment: list[str] = []
    for line in path.read_text().splitlines():
        if line.strip().startswith("//"):
            comment.append(line)
            continue
        if found := _SERVICE.match(line):
            head = "| method | request | response | meaning |\n|---|---|---|---|"
            yield f"\n## {found[1]}\n\n{_words(comment)}\n\n{head}"
        elif found := _RPC.match(line):
            name, streams, request, answers, response = found.groups(default="")
            sent, received = streams + request, answers + response
            yield f"| `{name}` | {sent} | {received} | {_words(comment)} |"
        comment = []


def _words(comment: Sequence[str]) -> str:
    return cell(" ".join(line.strip().removeprefix("//") for line in comment))
