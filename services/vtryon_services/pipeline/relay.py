"""Bytes on their way from one stream to another, never joined and never decoded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence

from vtryon.errors import StageError
from vtryon.events import Chunk, Output
from vtryon.types import Payload
from vtryon.wire.payloads import Buffer

# Pieces of at most 1 MiB each, 256 KiB by default: 1 MiB held per relay in the usual case.
_DEPTH = 4


class Relay:
    """The bytes of one payload: written chunk by chunk, read in the same chunks.

    Writing waits for a slow reader, which slows the sender down by gRPC's flow control.
    """

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[Buffer] = asyncio.Queue(_DEPTH)

    async def put(self, piece: Buffer) -> None:
        """Add bytes; empty ones end the relay."""
        await self._pieces.put(piece)

    def __aiter__(self) -> Relay:
        return self

    async def __anext__(self) -> Buffer:
        if piece := await self._pieces.get():
            return piece
        raise StopAsyncIteration


class Replay:
    """The buffered bytes of a payload, so that they can be sent again to another replica.

    May be iterated repeatedly: each iteration starts with the first byte. Readers may overlap: one
    that is about to be cancelled takes nothing from another.
    """

    def __init__(self, source: Buffer | AsyncIterable[Buffer]) -> None:
        whole = isinstance(source, (bytes, bytearray, memoryview))
        self._kept: list[Buffer] = [source] if whole else []  # type: ignore[list-item]
        self._source = None if whole else aiter(source)  # type: ignore[arg-type]
        self._one_at_a_time = asyncio.Lock()

    async def __aiter__(self) -> AsyncIterator[Buffer]:
        taken = 0
        while taken < len(self._kept) or await self._fetch(taken):
            yield self._kept[taken]
            taken += 1

    async def _fetch(self, taken: int) -> bool:
        """Fetch one more chunk, unless another reader has; return False at the end."""
        async with self._one_at_a_time:
            if taken < len(self._kept):
                return True
            if self._source is None:
                return False
            try:
                self._kept.append(await anext(self._source))
            except StopAsyncIteration:
                self._source = None
                return False
            return True


class Fanout:
    """Hands the chunks of declared payloads to the relays that want them."""

    def __init__(self, payloads: Sequence[Payload]) -> None:
        self._payloads = payloads
        self._passed = [0] * len(payloads)
        self._takers: list[list[Relay]] = [[] for _ in payloads]

    def relay(self, payload: int) -> Relay:
        """Make one more relay of a payload."""
        relay = Relay()
        self._takers[payload].append(relay)
        return relay

    def expect(self, output: Output) -> None:
        """Take note that the payloads come once more, from another server.

        What was passed on is not passed on again: it is the same, up to the rounding of sums.

        Raises:
            StageError: they are not the payloads that were declared.
        """
        if tuple(output.payloads) != tuple(self._payloads):
            raise StageError("another attempt of a stage gave a result of another shape")

    async def pass_on(self, chunk: Chunk) -> None:
        """Hand a chunk to every relay of its payload; the last one ends them."""
        passed = self._passed[chunk.payload]
        end = chunk.offset + len(chunk.data)
        if end <= passed:
            return
        fresh = memoryview(chunk.data)[max(0, passed - chunk.offset) :]
        self._passed[chunk.payload] = end
        for relay in self._takers[chunk.payload]:
            await relay.put(fresh)
            if end == self._payloads[chunk.payload].byte_length:
                await relay.put(b"")
