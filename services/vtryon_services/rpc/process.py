"""A process that serves: read settings, load, serve until SIGTERM, drain, flush."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple, Protocol, TypeVar

import structlog

from vtryon.errors import SettingsError
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.serve import Server
from vtryon_services.runtime.settings import ProcessSettings, ServiceSettings
from vtryon_services.runtime.telemetry import set_up_export, set_up_logs

T = TypeVar("T", bound=ServiceSettings)
_log = structlog.get_logger("vtryon.serve")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FLUSH_SECONDS = 1.0
_LAST_SECONDS = 2.0


class StartedServer(Protocol):
    """A started server: its actual address, and the names of its services."""

    @property
    def address(self) -> str:
        """The address as bound, host:port or unix:/path."""

    @property
    def names(self) -> Sequence[str]:
        """The names of the services."""


class RunningServer(NamedTuple):
    """A started gRPC server."""

    server: Server
    address: str
    services: Sequence[Service]

    @property
    def names(self) -> list[str]:
        """The names of the services."""
        return list(dict.fromkeys(str(service.stage) for service in self.services))


def run_service(settings_type: type[T], make: Callable[[T], Awaitable[Service]]) -> None:
    """Run one service until it is stopped; exit with 2 if it is misconfigured."""
    try:
        settings = settings_type.load()
        asyncio.run(serve(settings, _alone(settings, make)))
    except SettingsError as error:
        sys.stderr.write(f"{settings_type.service}: {error}\n")
        sys.exit(2)


@asynccontextmanager
async def _alone(
    settings: T, make: Callable[[T], Awaitable[Service]]
) -> AsyncIterator[RunningServer]:
    server = Server(settings)
    address = server.bind(settings.listen)
    service = await make(settings)
    await server.start([service])
    try:
        yield RunningServer(server, address, [service])
    finally:
        await server.drain()


async def serve(
    settings: ProcessSettings, begin: AbstractAsyncContextManager[StartedServer]
) -> None:
    """Serve until a signal; leaving `begin` drains.

    A signal ends the process at once while it loads, and again while it drains. Where something
    hangs after the drain, the process ends all the same.

    Raises:
        SettingsError: something is set up wrongly; nothing is left running.
    """
    # Threads of an operation that is over sleep, and leave the cores to whoever has work: the event
    # loop, or another stage. Read when torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    flush_logs = set_up_logs(settings)
    _end_at_once_on_signals()
    try:
        flush = set_up_export(settings, str(settings.service))
        async with begin as serving:
            # What was loaded stays: the collector need not walk through it again and again.
            gc.collect()
            gc.freeze()
            _log.info("serving", address=serving.address, services=serving.names)
            await _wait_for_signal()
            _log.info("draining", grace_seconds=settings.drain_grace_seconds)
            most = settings.drain_delay_seconds + settings.drain_grace_seconds
            _end_after(most + _LAST_SECONDS, code=1)
        _end_after(_LAST_SECONDS, code=0)
        await asyncio.to_thread(flush, _FLUSH_SECONDS)
        _log.info("stopped")
    finally:
        await asyncio.to_thread(flush_logs)


def _end_at_once_on_signals() -> None:
    """Have the kernel end the process: Python would wait for whatever its threads load."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


async def _wait_for_signal() -> None:
    """Wait for SIGTERM or SIGINT; after it a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, asked.set)
    await asked.wait()
    for number in _SIGNALS:
        loop.remove_signal_handler(number)
    _end_at_once_on_signals()


def _end_after(seconds: float, *, code: int) -> None:
    """End the process after so many seconds if it still runs, whatever its threads wait for."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
