"""A process that serves: read settings, load, serve until SIGTERM, drain, flush."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple, Protocol, TypeVar

import structlog

from vtryon.errors import SettingsError
from vtryon_services.runtime.adapter import Service
from vtryon_services.runtime.serve import Server
from vtryon_services.runtime.settings import ProcessSettings, ServiceSettings
from vtryon_services.runtime.telemetry import set_up_export, set_up_logs

T = TypeVar("T", bound=ServiceSettings)
_log = structlog.get_logger("vtryon.serve")


class Began(Protocol):
    """A server that has begun: its address as it turned out, and the names of what it serves."""

    @property
    def address(self) -> str: ...  # noqa: D102
    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102


class Serving(NamedTuple):
    """A gRPC server that has begun."""

    server: Server
    address: str
    services: Sequence[Service]

    @property
    def names(self) -> list[str]:
        """Of its services."""
        return list(dict.fromkeys(str(service.stage) for service in self.services))


def run_service(settings_type: type[T], make: Callable[[T], Awaitable[Service]]) -> None:
    """Run one service until it is told to stop; exit 2 where it is set up wrongly."""
    try:
        settings = settings_type.load()
        asyncio.run(serve(settings, _alone(settings, make)))
    except SettingsError as error:
        sys.stderr.write(f"{settings_type.service}: {error}\n")
        sys.exit(2)


@asynccontextmanager
async def _alone(settings: T, make: Callable[[T], Awaitable[Service]]) -> AsyncIterator[Serving]:
    server = Server(settings)
    address = server.bind(settings.listen)
    service = await make(settings)
    await server.start([service])
    try:
        yield Serving(server, address, [service])
    finally:
        await server.drain()


async def serve(settings: ProcessSettings, begin: AbstractAsyncContextManager[Began]) -> None:
    """Serve until a signal; leaving `begin` drains.

    Raises:
        SettingsError: something is set up wrongly; nothing is left running.
    """
    # Threads of an operation that is over sleep, and leave the cores to whoever has work: the event
    # loop, or the stage next door. Read when torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    set_up_logs(settings)
    flush = set_up_export(settings, str(settings.service))
    async with begin as serving:
        # What was loaded stays: the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()
        _log.info("serving", address=serving.address, services=serving.names)
        await _wait_for_signal()
        _log.info("draining", grace_seconds=settings.drain_grace_seconds)
    await asyncio.to_thread(flush)
    _log.info("stopped")


async def _wait_for_signal() -> None:
    """Wait for SIGTERM or SIGINT; after it a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    await asked.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
