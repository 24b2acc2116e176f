"""Attacks on REST, and a good caller of it; see `vtryon_loadtests.hostile`.

Callers have tenants, as the edge names them. Attacks send as many requests per second as the edge
allows one tenant.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx

from vtryon_loadtests.attacks import PER_SECOND, hold_connections
from vtryon_loadtests.tensor_streaming import running

_TENANT = "x-vtryon-tenant"
_JSON = {"content-type": "application/json"}
_FORM = {"content-type": "multipart/form-data; boundary=b"}
_AT_ONCE = 8

Answer = Awaitable[httpx.Response]


@asynccontextmanager
async def serve() -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """Serve a scripted mesh, and REST in front of it."""
    async with AsyncExitStack() as stack:
        command = ("vtryon", "serve", "all", "--backend", "scripted", "--listen", "127.0.0.1:0")
        mesh = stack.enter_context(running(*command, VTRYON_SCRIPTED_SECONDS="0.005"))
        bridge = ("vtryon", "serve", "rest", "--listen", "127.0.0.1:0")
        target = stack.enter_context(running(*bridge, VTRYON_REST_PIPELINE_TARGET=mesh))
        http = await stack.enter_async_context(_client(target, "good"))

        async def call() -> None:
            files = {"person": b"person", "garments": b"garment"}
            answer = await http.post("/v1/try-ons", files=files, data={"steps": 4})
            answer.raise_for_status()

        yield target, call


def _client(target: str, tenant: str) -> httpx.AsyncClient:
    headers = {_TENANT: tenant}
    return httpx.AsyncClient(base_url=f"http://{target}", headers=headers, timeout=30)


async def slow_headers(target: str) -> None:
    """Send a header a byte at a time, on many connections."""
    await hold_connections(target, b"POST /v1/try-ons HTTP/1.1\r\nx-slow: ", b"a")


async def slow_bodies(target: str) -> None:
    """Send a body a byte at a time, on many connections."""
    head = f"POST /v1/try-ons HTTP/1.1\r\nhost: x\r\n{_TENANT}: hostile\r\n"
    await hold_connections(target, f"{head}content-length: 1000000\r\n\r\n".encode(), b" ")


async def idle_connections(target: str) -> None:
    """Open many connections, and say nothing."""
    await hold_connections(target, b"", b"")


async def large_bodies(target: str) -> None:
    """Send bodies of 20 MiB that are no form."""
    body = b"\0" * (20 * 1024 * 1024)
    await _ask(target, lambda http: http.post("/v1/try-ons", content=body, headers=_FORM))


async def costly_json(target: str) -> None:
    """Send JSON with many members, each of which would be a violation."""
    body = json.dumps({f"a{number}": 0 for number in range(150_000)}).encode()
    await _ask(target, lambda http: http.post("/v1/try-ons", content=body, headers=_JSON))


async def deep_json(target: str) -> None:
    """Send JSON that is nested deep."""
    body = b'{"a":' * 500_000
    await _ask(target, lambda http: http.post("/v1/jobs", content=body, headers=_JSON))


async def many_parts(target: str) -> None:
    """Send forms of many parts."""
    part = b'--b\r\ncontent-disposition: form-data; name="steps"\r\n\r\n1\r\n'
    body = part * 50_000 + b"--b--\r\n"
    await _ask(target, lambda http: http.post("/v1/try-ons", content=body, headers=_FORM))


async def odd_tensors(target: str) -> None:
    """Send safetensors files with a large header."""
    shape = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{number}": shape for number in range(100_000)}).encode()
    files = {"latents": struct.pack("<Q", len(header)) + header}
    await _ask(target, lambda http: http.post("/v1/stages/decoding", files=files))


async def failing_requests(target: str) -> None:
    """Send requests with a deadline that can't be met."""
    files = {"person": b"person", "garments": b"garment"}
    data = {"steps": 200, "timeout_seconds": 0.001}
    await _ask(target, lambda http: http.post("/v1/try-ons", files=files, data=data))


ATTACKS = {
    one.__name__.replace("_", " "): one
    for one in (
        *(slow_headers, slow_bodies, idle_connections, large_bodies, costly_json, deep_json),
        *(many_parts, odd_tensors, failing_requests),
    )
}


async def _ask(target: str, ask: Callable[[httpx.AsyncClient], Answer]) -> None:
    """Send as many requests per second as the edge allows one tenant, several at once."""

    async def caller(http: httpx.AsyncClient) -> None:
        while True:
            started = time.monotonic()
            with contextlib.suppress(httpx.HTTPError):
                await ask(http)
            left = _AT_ONCE / PER_SECOND - (time.monotonic() - started)
            await asyncio.sleep(max(0.0, left))

    async with _client(target, "hostile") as http:
        await asyncio.gather(*(caller(http) for _ in range(_AT_ONCE)))
