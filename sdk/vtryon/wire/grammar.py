"""The grammar of a stream, as one state machine used by both ends.

    requests  = start chunk* half-close
    responses = accepted (queued | progress | preview | resume_chunk)* output chunk* finished

Sender and receiver pass the name of each message to `Requests` and `Responses`, in wire order.
After `start` or `output` the declared payloads follow; a `PayloadCursor` checks that their bytes
arrive in the order of declaration, without gaps or overlaps, and completely.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from vtryon.errors import ProtocolError, Reason
from vtryon.events import Chunk, Event, Output, name_of
from vtryon.types import Payload

MAX_CHUNK_BYTES = 1024 * 1024
DEFAULT_CHUNK_BYTES = 256 * 1024


class PayloadCursor:
    """Where a stream is in its declared payloads."""

    __slots__ = ("_index", "_offset", "_payloads")

    def __init__(self, payloads: Sequence[Payload]) -> None:
        self._payloads = payloads
        self._index = 0
        self._offset = 0
        self._skip_complete()

    @property
    def complete(self) -> bool:
        """True when every declared byte has passed."""
        return self._index == len(self._payloads)

    def advance(self, payload: int, offset: int, size: int) -> None:
        """Take note of a chunk.

        Raises:
            ProtocolError: it is not the next chunk, is empty, too large, or one too many.
        """
        if self.complete:
            raise ProtocolError(f"a chunk of payload {payload} after the last declared byte")
        if (payload, offset) != (self._index, self._offset):
            raise ProtocolError(
                f"a chunk of payload {payload} at offset {offset} where payload {self._index} "
                f"goes on at {self._offset}"
            )
        if not 0 < size <= MAX_CHUNK_BYTES:
            raise ProtocolError(f"a chunk of {size} bytes; it takes 1 to {MAX_CHUNK_BYTES}")
        left = self._payloads[self._index].byte_length - self._offset
        if size > left:
            raise ProtocolError(f"a chunk of {size} bytes where payload {payload} has {left} left")
        self._offset += size
        self._skip_complete()

    def describe(self) -> str:
        """Say where the stream is, for an error about its end."""
        total = self._payloads[self._index].byte_length
        return f"payload {self._index} has {self._offset} of {total} bytes"

    def _skip_complete(self) -> None:
        while not self.complete and self._offset == self._payloads[self._index].byte_length:
            self._index, self._offset = self._index + 1, 0


class _Direction:
    """A table of (state, message) → state, and the payloads in the middle of it."""

    table: ClassVar[dict[tuple[str, str], str]]
    declares: ClassVar[str]
    closes: ClassVar[str]

    __slots__ = ("_cursor", "state")

    def __init__(self) -> None:
        self.state = "begin"
        self._cursor = PayloadCursor(())

    def message(self, name: str) -> None:
        """Take note of a message that is no chunk.

        Raises:
            ProtocolError: the grammar does not allow it here.
        """
        state = self.table.get((self.state, name))
        if state is None:
            allowed = [message for at, message in self.table if at == self.state]
            raise ProtocolError(f"{name} where only {' or '.join(allowed) or 'nothing'} can come")
        if name == self.closes and not self._cursor.complete:
            raise ProtocolError(
                f"the stream ended early: {self._cursor.describe()}",
                reason=Reason.STREAM_INCOMPLETE,
            )
        self.state = state

    def declare(self, payloads: Sequence[Payload]) -> None:
        """Take note of `start` or `output` and its payloads."""
        self.message(self.declares)
        self._cursor = PayloadCursor(payloads)

    def chunk(self, payload: int, offset: int, size: int) -> None:
        """Take note of a chunk.

        Raises:
            ProtocolError: no chunk can come here, or not this one.
        """
        if (self.state, "chunk") not in self.table:
            self.message("chunk")
        self._cursor.advance(payload, offset, size)

    @property
    def ended(self) -> bool:
        """True when nothing more can come."""
        return self.state == "end"


class Requests(_Direction):
    """start chunk* half-close."""

    declares = "start"
    closes = "half-close"
    table: ClassVar[dict[tuple[str, str], str]] = {
        ("begin", "start"): "payloads",
        ("payloads", "chunk"): "payloads",
        ("payloads", "half-close"): "end",
    }
    __slots__ = ()


class Responses(_Direction):
    """accepted (queued | progress | preview | resume_chunk)* output chunk* finished."""

    declares = "output"
    closes = "finished"
    table: ClassVar[dict[tuple[str, str], str]] = {
        ("begin", "accepted"): "events",
        ("events", "queued"): "events",
        ("events", "progress"): "events",
        ("events", "preview"): "events",
        ("events", "resume_chunk"): "events",
        ("events", "output"): "payloads",
        ("payloads", "chunk"): "payloads",
        ("payloads", "finished"): "end",
    }
    __slots__ = ()

    def event(self, event: Event) -> None:
        """Take note of a response.

        Raises:
            ProtocolError: the grammar does not allow it here.
        """
        match event:
            case Chunk(payload, offset, data):
                self.chunk(payload, offset, len(data))
            case Output(payloads):
                self.declare(payloads)
            case _:
                self.message(name_of(event))
