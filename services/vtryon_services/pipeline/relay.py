"""Bytes on their way from one stream to another, never joined and never decoded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from vtryon.events import Chunk
from vtryon.payloads import Buffer
from vtryon.types import Payload

# Pieces of at most 1 MiB each, 256 KiB by default: 1 MiB held per relay in the usual case.
_DEPTH = 4


class Relay:
    """One payload's bytes: put in piece by piece, taken out in the same pieces.

    Putting waits while the taker is behind, which slows the sender down by gRPC's flow control.
    """

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[Buffer] = asyncio.Queue(_DEPTH)

    async def put(self, piece: Buffer) -> None:
        """Add bytes; empty ones end the relay."""
        await self._pieces.put(piece)

    async def __aiter__(self) -> AsyncIterator[Buffer]:
        while piece := await self._pieces.get():
            yield piece


class Fanout:
    """Hands the chunks of declared payloads to the relays that want them."""

    def __init__(self, payloads: Sequence[Payload]) -> None:
        self._payloads = payloads
        self._takers: list[list[Relay]] = [[] for _ in payloads]

    def relay(self, payload: int) -> Relay:
        """Make one more relay of a payload."""
        relay = Relay()
        self._takers[payload].append(relay)
        return relay

    async def pass_on(self, chunk: Chunk) -> None:
        """Hand a chunk to every relay of its payload; the last one ends them."""
        complete = chunk.offset + len(chunk.data) == self._payloads[chunk.payload].byte_length
        for relay in self._takers[chunk.payload]:
            await relay.put(chunk.data)
            if complete:
                await relay.put(b"")
