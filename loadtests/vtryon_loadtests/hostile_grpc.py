"""Attacks on the gRPC services, and a good caller of them; see `vtryon_loadtests.hostile`.

Callers have tenants, as the edge names them. Attacks send as many requests per second as the edge
allows one tenant.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

import vtryon
from vtryon.types import EncodedImage, Payload, PayloadKind, TryOnOptions, TryOnStart
from vtryon.v1 import pipeline_pb2
from vtryon_loadtests.attacks import paced
from vtryon_loadtests.tensor_streaming import running

Metadata = tuple[tuple[str, str], ...]
_TRY_ON = "/vtryon.v1.PipelineService/TryOn"
_TENANT: Metadata = (("x-vtryon-tenant", "hostile"),)
_PERSON, _GARMENT = b"person", b"garment"
_AT_ONCE = 100
_ITEMS = 1_800_000


@asynccontextmanager
async def serve() -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """Serve a scripted mesh."""
    command = ("vtryon", "serve", "all", "--backend", "scripted", "--listen", "127.0.0.1:0")
    with running(*command, VTRYON_SCRIPTED_SECONDS="0.005") as target:
        async with vtryon.Client(target) as client:
            good = client.acting_for("good")

            async def call() -> None:
                await good.try_on(_PERSON, _GARMENT, steps=4, timeout_seconds=30)

            yield target, call


async def silent_streams(target: str) -> None:
    """Open streams, and send nothing."""
    await _attack(target, lambda channel: stream(channel, b""))


async def declared_payloads(target: str) -> None:
    """Declare large pictures, and send none of them."""
    start = start_of(20 * 2**20)
    await _attack(target, lambda channel: stream(channel, start))


async def repeated_items(target: str) -> None:
    """Send messages of 3.6 MiB that declare millions of payloads."""
    inner = b"\x0a\x00" * _ITEMS
    body = b"\x0a" + _varint(len(inner)) + inner
    await _attack(target, lambda channel: stream(channel, body))


async def endless_numbers(target: str) -> None:
    """Send chunks with an endless varint as length."""
    bodies = (start_of(1000), b"\x12" + b"\xff" * 1_000_000)
    await _attack(target, lambda channel: stream(channel, *bodies))


async def health_names(target: str) -> None:
    """Watch the health of services with names of 3.5 MiB."""
    body = health_pb2.HealthCheckRequest(service="x" * 3_500_000).SerializeToString()

    async def watch(channel: grpc.aio.Channel) -> None:
        async for _ in channel.unary_stream("/grpc.health.v1.Health/Watch")(body):
            pass

    await _attack(target, watch)


async def idle_connections(target: str) -> None:
    """Open many connections, and say nothing."""
    host, _, port = target.rpartition(":")

    async def hold() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(host, int(port))
                while await reader.read(4096):
                    pass
                writer.close()
            await asyncio.sleep(1)

    await asyncio.gather(*(hold() for _ in range(_AT_ONCE)))


async def stream(channel: grpc.aio.Channel, *messages: bytes, metadata: Metadata = _TENANT) -> None:
    """Send messages on a stream of its own, and leave it open."""
    call = channel.stream_stream(_TRY_ON)(metadata=metadata)
    for message in filter(None, messages):
        await call.write(message)
    async for _ in call:
        pass


async def _attack(target: str, one: Callable[[grpc.aio.Channel], Awaitable[None]]) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        await paced(lambda: one(channel))


def start_of(size: int) -> bytes:
    """Give a message that declares a person of so many bytes."""
    payload = Payload(PayloadKind.PERSON_IMAGE, size, image=EncodedImage())
    start: Any = TryOnStart((payload,), TryOnOptions()).to_proto()
    return pipeline_pb2.TryOnRequest(start=start).SerializeToString()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


ATTACKS = {
    "silent streams": silent_streams,
    "declared payloads": declared_payloads,
    "repeated items": repeated_items,
    "endless numbers": endless_numbers,
    "health names": health_names,
    "idle connections": idle_connections,
}
