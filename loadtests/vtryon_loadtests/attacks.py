"""Shared parts of attacks: a request rate, and held connections; see `hostile`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import Awaitable, Callable

import grpc
import httpx

import vtryon

PER_SECOND = 20
_CONNECTIONS = 64
_RECONNECT_SECONDS = 0.05
_REFUSALS = (
    *(grpc.aio.AioRpcError, asyncio.InvalidStateError, vtryon.VtryonError),
    *(httpx.HTTPError, OSError),
)


async def paced(one: Callable[[], Awaitable[object]], per_second: float = PER_SECOND) -> None:
    """Begin so many a second, whatever becomes of those before.

    By default as many as the edge lets one tenant.
    """
    begun: set[asyncio.Task[None]] = set()
    for _ in itertools.count():
        task = asyncio.create_task(_unless_refused(one))
        begun.add(task)
        task.add_done_callback(begun.discard)
        await asyncio.sleep(1 / per_second)


async def hold_connections(
    target: str, first: bytes, more: bytes, tls: ssl.SSLContext | None = None
) -> None:
    """Hold many connections: say something, then a little more again and again."""

    async def hold() -> None:
        host, _, port = target.rpartition(":")
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(host, int(port), ssl=tls)
                writer.write(first)
                while not reader.at_eof() and not writer.is_closing():
                    writer.write(more)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1024), 0.5)
                writer.close()
            await asyncio.sleep(_RECONNECT_SECONDS)

    await asyncio.gather(*(hold() for _ in range(_CONNECTIONS)))


async def _unless_refused(one: Callable[[], Awaitable[object]]) -> None:
    with contextlib.suppress(*_REFUSALS):
        await one()
