"""Attacks on the topic of requests, and a good caller of it; see `vtryon_loadtests.hostile`.

Everybody sends to the same partitions; messages that the bridge can't read become dead letters.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from vtryon_loadtests.attacks import PER_SECOND, paced
from vtryon_loadtests.hostile_jobs import serve_jobs
from vtryon_loadtests.interface_cost import bridge_variables, free_port, listening, process
from vtryon_loadtests.kafka import KafkaCaller
from vtryon_loadtests.tensor_streaming import running

_PREFIX = "hostile"
_LARGE_BYTES = 400_000
_SMALL = {"inline": b"picture", "claim": None}


@asynccontextmanager
async def serve() -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """Serve a scripted mesh with jobs, a broker in memory, a registry and the bridge."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        mesh, jobs = stack.enter_context(serve_jobs(folder))
        registry, broker = (f"127.0.0.1:{free_port()}" for _ in range(2))
        stack.enter_context(process("kafka", "registry", "--listen", registry))
        stack.enter_context(process("kafka", "broker", "--listen", broker))
        for place in (registry, broker):
            await listening(place)
        named = bridge_variables(
            *(broker, registry, folder, mesh, jobs), PREFIX=_PREFIX, SERVES="jobs"
        )
        stack.enter_context(running("vtryon", "serve", "kafka", "--listen", "127.0.0.1:0", **named))
        target = f"{broker} {registry}"
        caller = await stack.enter_async_context(_open(target))

        async def call() -> None:
            async with asyncio.timeout(30):
                await caller.draw(b"person", b"garment", steps=4)

        yield target, call


async def request_floods(target: str) -> None:
    """Ask for try-ons as often as the edge would let one tenant."""
    await _send(target, lambda caller, key: caller.record(key, _SMALL, _SMALL, steps=4))


async def undecodable_records(target: str) -> None:
    """Send bytes that no schema has, five times as often."""
    await _send(target, lambda caller, key: b"\0\0\0\0\1" + os.urandom(200), 5 * PER_SECOND)


async def unknown_schemas(target: str) -> None:
    """Name a schema that the registry does not know, another one each time."""
    await _send(target, lambda caller, key: b"\0" + os.urandom(4) + b"\0" * 200)


async def large_payloads(target: str) -> None:
    """Send records of 800 KB that hold no pictures."""
    large = {"inline": b"\0" * _LARGE_BYTES, "claim": None}
    await _send(target, lambda caller, key: caller.record(key, large, large, steps=4))


async def missing_claims(target: str) -> None:
    """Claim objects that are not there."""
    claim = {"name": "missing", "sha256": "0" * 64, "byte_length": 1000}
    gone = {"inline": None, "claim": claim}
    await _send(target, lambda caller, key: caller.record(key, gone, _SMALL, steps=4))


def _open(target: str) -> Any:
    broker, registry = target.split()
    return KafkaCaller.open(broker, f"http://{registry}", _PREFIX)


async def _send(
    target: str, make: Callable[[KafkaCaller, bytes], bytes], per_second: float = PER_SECOND
) -> None:
    async with _open(target) as caller:

        async def one() -> None:
            key = uuid.uuid4().hex.encode()
            await caller.send(make(caller, key), key, x_vtryon_tenant="hostile")

        await paced(one, per_second)


ATTACKS = {
    one.__name__.replace("_", " "): one
    for one in (
        *(request_floods, undecodable_records, unknown_schemas, large_payloads, missing_claims),
    )
}
