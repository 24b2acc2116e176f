"""Attacks on a mesh's edge with and without a token; see `vtryon_loadtests.hostile`.

The mesh is that of `mesh.yaml`, with its limits: Envoys, mutual TLS, tokens. Its folder is the
second word of the target; the hostile tenant's token is in it.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx

import vtryon
from vtryon_loadtests.attacks import PER_SECOND, hold_connections, paced
from vtryon_loadtests.hostile_grpc import start_of, stream
from vtryon_mesh.description import Mesh
from vtryon_mesh.local.layout import UpOptions
from vtryon_mesh.local.planning import lay_out
from vtryon_mesh.local.supervise import Supervisor, supervised
from vtryon_mesh.local.tokens import Issuer

_START_SECONDS = 120.0
_FLOOD_PER_SECOND = 10 * PER_SECOND
_SERVICES = ("latent-encoder", "text-encoder", "sampling", "decoding", "pipeline", "rest")


@asynccontextmanager
async def serve() -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """Run the mesh; the good caller has a token of its own."""
    mesh = Mesh.load()
    issuer = Issuer.create(mesh)
    wanted = UpOptions(
        services=_SERVICES,
        replicas={},
        backend="scripted",
        mtls=True,
        jwks=issuer.jwks,
        free_ports=True,
    )
    with tempfile.TemporaryDirectory() as name:
        layout = lay_out(mesh, wanted, Path(name))
        issuer.write_token(Path(name) / "hostile", "hostile")
        with supervised(layout) as supervisor:
            await _healthy(supervisor)
            tls = vtryon.Tls(ca_path=_ca(name))
            async with vtryon.Client(
                str(layout.edge_address), tls=tls, token=issuer.token("good")
            ) as client:

                async def call() -> None:
                    await client.try_on(b"person", b"garment", steps=4, timeout_seconds=30)

                yield f"{layout.edge_address} {name}", call


async def _healthy(supervisor: Supervisor) -> None:
    until = time.monotonic() + _START_SECONDS
    while not all(one.healthy for one in await asyncio.to_thread(supervisor.statuses)):
        if time.monotonic() > until:
            raise RuntimeError(f"the mesh is not healthy after {_START_SECONDS:.0f} s")
        await asyncio.sleep(0.2)


async def half_open_handshakes(target: str) -> None:
    """Begin a TLS handshake on many connections, and go on a byte at a time."""
    await hold_connections(
        target.split()[0], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0"
    )


async def idle_connections(target: str) -> None:
    """Open many connections with TLS, and say nothing."""
    await _hold(target, "", b"")


async def connection_churn(target: str) -> None:
    """Open connections with TLS, and close them at once."""
    address, folder = target.split()
    host, _, port = address.rpartition(":")
    tls = _tls(folder)

    async def one() -> None:
        _, writer = await asyncio.open_connection(host, int(port), ssl=tls)
        writer.close()

    await paced(one, 2 * PER_SECOND)


async def slow_headers(target: str) -> None:
    """Send a header a byte at a time, on many connections, without a token."""
    await _hold(target, "POST /v1/try-ons HTTP/1.1\r\nhost: localhost\r\nx-slow: ", b"a")


async def slow_bodies(target: str) -> None:
    """Send a body of 5 MB a byte at a time, on many connections, with a token."""
    head = "POST /v1/try-ons HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5000000\r\n"
    await _hold(target, f"{head}authorization: {_token(target)}\r\n\r\n", b" ")


async def large_headers(target: str) -> None:
    """Send headers above the limit."""
    await _ask(target, {"x-large": "x" * 40_000})


async def refused_requests(target: str) -> None:
    """Ask without a token, ten times as often as a tenant may."""
    await _ask(target, {}, _FLOOD_PER_SECOND)


async def forged_tokens(target: str) -> None:
    """Send tokens with a foreign signature, ten times as often as the limit of a tenant."""
    forged = Issuer.create(Mesh.load()).token("good")
    await _ask(target, {"authorization": f"Bearer {forged}"}, _FLOOD_PER_SECOND)


async def too_many_requests(target: str) -> None:
    """Ask with a token, ten times as often as a tenant may."""
    await _ask(target, {"authorization": _token(target)}, _FLOOD_PER_SECOND)


async def silent_streams(target: str) -> None:
    """Open streams with a token, and send nothing."""
    await _stream(target, b"", token=True)


async def declared_payloads(target: str) -> None:
    """Declare large pictures with a token, and send none of them."""
    await _stream(target, start_of(20 * 2**20), token=True)


async def refused_streams(target: str) -> None:
    """Open streams without a token."""
    await _stream(target, start_of(1000), token=False)


def _ca(folder: str) -> Path:
    return Path(folder) / "certificates" / "ca.crt"


def _tls(folder: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=_ca(folder))


def _token(target: str) -> str:
    return f"Bearer {(Path(target.split()[1]) / 'hostile').read_text().strip()}"


async def _hold(target: str, first: str, more: bytes) -> None:
    address, folder = target.split()
    await hold_connections(address, first.encode(), more, _tls(folder))


async def _ask(target: str, headers: dict[str, str], per_second: float = PER_SECOND) -> None:
    address, folder = target.split()
    url = f"https://{address}"
    async with httpx.AsyncClient(base_url=url, headers=headers, verify=_tls(folder)) as http:
        await paced(lambda: http.get("/v1/jobs"), per_second)


async def _stream(target: str, message: bytes, *, token: bool) -> None:
    address, folder = target.split()
    credentials = grpc.ssl_channel_credentials(_ca(folder).read_bytes())
    metadata = (("authorization", _token(target)),) if token else ()
    async with grpc.aio.secure_channel(address, credentials) as channel:
        await paced(lambda: stream(channel, message, metadata=metadata))


ATTACKS = {
    one.__name__.replace("_", " "): one
    for one in (
        *(half_open_handshakes, idle_connections, connection_churn, slow_headers, slow_bodies),
        *(large_headers, refused_requests, forged_tokens, too_many_requests, silent_streams),
        *(declared_payloads, refused_streams),
    )
}
