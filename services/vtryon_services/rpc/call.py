"""A service's view of a call: facts, incoming payloads, and responses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import trace

from vtryon.events import Accepted, Chunk, Event, Output
from vtryon.types import Payload, Stage
from vtryon.wire.payloads import Assembler, Outgoing, chunks


@dataclass(slots=True)
class Call:
    """Facts of a call.

    Attributes:
        tenant: for fair scheduling; empty if unknown.
        content_digest: digest of the input as sent by the client; used for routing only.
        facts: added to the metadata of an error that ends the call, such as the completed steps.
    """

    request_id: str
    timeout_seconds: float
    timeout_is_default: bool
    tenant: str = ""
    content_digest: str = ""
    span: trace.Span = trace.INVALID_SPAN
    started: float = field(default_factory=time.monotonic)
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def elapsed_seconds(self) -> float:
        """Since the call began."""
        return time.monotonic() - self.started

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.timeout_seconds - self.elapsed_seconds


class Incoming:
    """The payloads of a request, as they arrive."""

    def __init__(self, payloads: Sequence[Payload], chunks: AsyncIterator[Chunk]) -> None:
        self.payloads = tuple(payloads)
        self.chunks = chunks

    async def receive(self) -> list[bytearray | memoryview]:
        """Wait for all payloads, each in one buffer.

        Raises:
            ProtocolError: the grammar does not hold, or the caller closed early.
        """
        assembler = Assembler(self.payloads)
        async for chunk in self.chunks:
            assembler.add(chunk)
        return assembler.buffers


def accepted(stage: Stage, call: Call, **chosen: Any) -> Accepted:
    """Build the first event of a stream: the effective deadline, and the server's choices."""
    return Accepted(
        stage=stage,
        timeout_seconds=call.timeout_seconds,
        timeout_is_default=call.timeout_is_default,
        **chosen,
    )


async def send_output(outgoing: Sequence[Outgoing]) -> AsyncIterator[Event]:
    """Give the events of a result: its declaration, then its chunks."""
    yield Output(tuple(item.payload for item in outgoing))
    async for chunk in chunks(outgoing):
        yield chunk
