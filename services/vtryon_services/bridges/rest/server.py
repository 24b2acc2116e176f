"""uvicorn in the manner of the other services: our logs, our signals, our draining."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import uvicorn

from vtryon.catalog import REST
from vtryon.errors import SettingsError
from vtryon_services.bridges.rest.app import create_app
from vtryon_services.bridges.rest.connections import protocol_of
from vtryon_services.bridges.rest.settings import RestSettings


class ListeningBridge(NamedTuple):
    """The bridge's address as it turned out."""

    address: str
    names: Sequence[str] = (REST,)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin, and say so."""
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process."""
        yield


@asynccontextmanager
async def begin(settings: RestSettings) -> AsyncIterator[ListeningBridge]:
    """Serve HTTP until the block ends, then drain.

    Raises:
        SettingsError: the address is in use or invalid.
    """
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        http=protocol_of(settings),
        ws="none",
        timeout_keep_alive=settings.idle_timeout_seconds,
        timeout_graceful_shutdown=max(1, round(settings.drain_grace_seconds)),
    )
    listener = _listen(settings.listen)
    server = _Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        up = asyncio.create_task(server.up.wait())
        await asyncio.wait({up, serving}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        host, port = listener.getsockname()[:2]
        yield ListeningBridge(f"{host}:{port}")
    finally:
        app.state.draining = True
        await asyncio.sleep(settings.drain_delay_seconds)
        app.state.uploads.stop()
        server.should_exit = True
        await serving


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        listener = socket.create_server((host.strip("[]"), int(port)), backlog=512)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"can't serve on {address}: it is taken, or no address of this machine"
        ) from error
    # asyncio does that only for sockets that say IPPROTO_TCP; without it an answer waits for the
    # acknowledgement of its own headers, 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
