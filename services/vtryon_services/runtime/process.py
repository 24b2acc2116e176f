"""A process that serves: read settings, load, serve until SIGTERM, drain, flush."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple, TypeVar

import structlog

from vtryon.errors import SettingsError
from vtryon_services.runtime.adapter import Service
from vtryon_services.runtime.serve import Server
from vtryon_services.runtime.settings import ServiceSettings
from vtryon_services.runtime.telemetry import set_up_export, set_up_logs

T = TypeVar("T", bound=ServiceSettings)
_log = structlog.get_logger("vtryon.serve")


class Serving(NamedTuple):
    """A server that has begun: its address as it turned out, and what it serves."""

    server: Server
    address: str
    services: Sequence[Service]


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


async def serve(settings: ServiceSettings, begin: AbstractAsyncContextManager[Serving]) -> None:
    """Serve until a signal; leaving `begin` drains.

    Raises:
        SettingsError: something is set up wrongly; nothing is left running.
    """
    # Threads of an operation that is over sleep, and leave the cores to whoever has work: the event
    # loop, or the stage next door. Read when torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    set_up_logs(settings)
    flush = set_up_export(settings, settings.service.value)
    async with begin as serving:
        # What was loaded stays: the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()
        names = [service.stage.value for service in serving.services]
        _log.info("serving", address=serving.address, services=names)
        await serving.server.wait_for_signal()
    await asyncio.to_thread(flush)
    _log.info("stopped")
