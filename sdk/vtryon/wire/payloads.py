"""Payloads: cutting them into chunks, and putting chunks together again."""

from __future__ import annotations

import mmap
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from vtryon.events import Chunk
from vtryon.types import EncodedImage, Payload, PayloadKind
from vtryon.wire.grammar import DEFAULT_CHUNK_BYTES

Buffer = bytes | bytearray | memoryview
_LARGE = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A payload to send: its declaration, and its bytes, whole or as they come."""

    payload: Payload
    data: Buffer | AsyncIterable[Buffer] = field(repr=False)


def outgoing_image(kind: PayloadKind, data: Buffer, image: EncodedImage | None = None) -> Outgoing:
    """Declare an encoded picture as a payload of `kind`, ready to be sent."""
    return Outgoing(Payload(kind, len(data), image=image or EncodedImage()), data)


async def chunks(
    outgoing: Sequence[Outgoing], size: int = DEFAULT_CHUNK_BYTES
) -> AsyncIterator[Chunk]:
    """Cut payloads into chunks, one payload after the other.

    Bytes that arrive in pieces are sent on in the same pieces: nothing is joined or cut again.
    """
    for index, item in enumerate(outgoing):
        if isinstance(item.data, (bytes, bytearray, memoryview)):
            for offset, piece in cut(item.data, size):
                yield Chunk(index, offset, piece)
        else:
            sent = 0
            async for part in item.data:
                yield Chunk(index, sent, part)
                sent += len(part)


def cut(data: Buffer, size: int = DEFAULT_CHUNK_BYTES) -> Iterator[tuple[int, memoryview]]:
    """Cut bytes into pieces of at most `size`, each with its offset."""
    view = memoryview(data).cast("B")
    for offset in range(0, len(view), size):
        yield offset, view[offset : offset + size]


class Assembler:
    """Assembles the chunks of declared payloads, each payload in one buffer.

    Allocates memory for received bytes, not for declared ones. The grammar checks the order of
    chunks.
    """

    __slots__ = ("buffers", "payloads")

    def __init__(self, payloads: Sequence[Payload]) -> None:
        self.payloads = tuple(payloads)
        self.buffers: list[bytearray | memoryview] = [bytearray() for _ in payloads]

    def add(self, chunk: Chunk) -> None:
        """Copy a chunk to its place."""
        if chunk.offset == 0:
            self.buffers[chunk.payload] = _room(self.payloads[chunk.payload].byte_length)
        buffer = self.buffers[chunk.payload]
        if isinstance(buffer, bytearray):
            buffer += chunk.data
        else:
            buffer[chunk.offset : chunk.offset + len(chunk.data)] = chunk.data


def _room(size: int) -> bytearray | memoryview:
    """Make a buffer: a small one grows, a large one is mapped and filled in huge pages.

    Filling fresh memory costs four times the copying in pages of 4 KiB.
    """
    if size < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return bytearray()
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(room)
