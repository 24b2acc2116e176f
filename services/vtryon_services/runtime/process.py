"""One service as a process: read settings, load, serve until SIGTERM."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from vtryon.errors import SettingsError
from vtryon_services.runtime.adapter import Service
from vtryon_services.runtime.serve import Server
from vtryon_services.runtime.settings import ServiceSettings
from vtryon_services.runtime.telemetry import set_up_logs, set_up_traces

T = TypeVar("T", bound=ServiceSettings)
_log = structlog.get_logger("vtryon.serve")


def run_service(settings_type: type[T], make: Callable[[T], Awaitable[Service]]) -> None:
    """Run a service until it is told to stop; exit 2 where it is set up wrongly."""
    try:
        settings = settings_type.load()

        async def make_all(_: Sequence[str]) -> list[Service]:
            return [await make(settings)]

        asyncio.run(serve(settings, [settings.listen], make_all, settings.service.value))
    except SettingsError as error:
        sys.stderr.write(f"{settings_type.service}: {error}\n")
        sys.exit(2)


async def serve(
    settings: ServiceSettings,
    addresses: Sequence[str],
    make: Callable[[Sequence[str]], Awaitable[Sequence[Service]]],
    name: str,
) -> None:
    """Bind the addresses, make the services, serve until a signal, drain, flush.

    `make` is told the addresses as they turned out.

    Raises:
        SettingsError: something is set up wrongly; nothing is left running.
    """
    set_up_logs(settings)
    traces = set_up_traces(settings, name)
    server = Server(settings)
    bound = [server.bind(address) for address in addresses]
    services = await make(bound)
    await server.start(services)
    _log.info("serving", address=bound[0], services=[item.stage.value for item in services])
    await server.serve_until_signal()
    if traces is not None:
        await asyncio.to_thread(traces.shutdown)
