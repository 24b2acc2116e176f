"""Several services in one process, on one address.

A pipeline calls stages of the same process without a network hop (`rpc/local.py`): this is
cheaper, and requests in flight when draining begins still reach their later stages.
"""

from __future__ import annotations

import asyncio
import pkgutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from vtryon import extras
from vtryon.catalog import CATALOG, JOBS
from vtryon.checkpoint_source import Source
from vtryon.errors import SettingsError
from vtryon.types import Stage
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.local import LocalStage
from vtryon_services.rpc.process import RunningServer
from vtryon_services.rpc.serve import Server
from vtryon_services.runtime.settings import ServiceSettings
from vtryon_services.runtime.unread_settings import unread_settings

_log = structlog.get_logger("vtryon.serve")
_PROGRESS_SECONDS = 5.0


def settings_of(name: str) -> type[ServiceSettings]:
    """Load the class of a service's settings."""
    settings: type[ServiceSettings] = pkgutil.resolve_name(CATALOG[name].settings)
    return settings


def _factory_of(name: str) -> Callable[..., Awaitable[Any]]:
    """Load what makes a service, and with it all that the service needs."""
    factory: Callable[..., Awaitable[Any]] = pkgutil.resolve_name(CATALOG[name].factory)
    return factory


def load_settings(names: Sequence[str], given: Mapping[str, Any]) -> dict[str, ServiceSettings]:
    """Read the settings of all services of a process; short names apply to each that has them.

    Args:
        names: of the services.
        given: takes precedence over the environment, for every service that has it.

    Raises:
        SettingsError: a value is invalid, a name is unknown, or no service reads a setting.
    """
    kinds = {name: settings_of(name) for name in names}
    loaded = {name: kind.load_from(given, list(kinds.values())) for name, kind in kinds.items()}
    if unread := list(unread_settings(loaded.values(), given)):
        raise SettingsError("; ".join(unread))
    return loaded


@asynccontextmanager
async def host(
    settings: ServiceSettings, stages: Sequence[str], address: str, **given: Any
) -> AsyncIterator[RunningServer]:
    """Serve stages on one address until the block is left, then drain.

    The address is taken before anything is loaded.

    Raises:
        SettingsError: something is set up wrongly.
    """
    loaded = load_settings(stages, given)
    server = Server(settings)
    bound = server.bind(address)
    with tempfile.TemporaryDirectory(prefix="vtryon-") as folder:
        jobs = loaded.pop(JOBS, None)
        services = await _make(loaded)
        if jobs is not None:
            services += await _make_jobs(jobs, server, folder if Stage.PIPELINE in stages else None)
        await server.start(services)
        try:
            yield RunningServer(server, bound, services)
        finally:
            await server.drain(hand_over=Stage.PIPELINE not in stages)


async def _make_jobs(
    settings: ServiceSettings, server: Server, folder: str | None
) -> list[Service]:
    """Make the services of jobs.

    They call a pipeline of this process by a socket in a private folder, in plain text: neither TLS
    nor a proxy of the environment is between them.
    """
    extras.require("the service of jobs", extras.of_service(JOBS))
    if folder is not None and "pipeline_target" not in settings.model_fields_set:
        beside = server.bind(f"unix:{Path(folder) / 'pipeline.sock'}")
        settings = settings.model_copy(update={"pipeline_target": beside})
    services: list[Service] = await _factory_of(JOBS)(settings)
    return services


async def make_services(stages: Sequence[str], **given: Any) -> list[Service]:
    """Create the services of a process; a pipeline calls the others without a network hop.

    The settings `given` take precedence over the environment, for every service that has them.

    Raises:
        SettingsError: a service is misconfigured.
    """
    return await _make(load_settings(stages, given))


async def _make(loaded: Mapping[str, ServiceSettings]) -> list[Service]:
    stages = {Stage(name): own for name, own in loaded.items() if name != Stage.PIPELINE}
    services = await asyncio.gather(*(_load(stage, own) for stage, own in stages.items()))
    if (pipeline := loaded.get(Stage.PIPELINE)) is None:
        return list(services)
    beside = {Stage(service.stage): LocalStage(service) for service in services}
    return [*services, await _factory_of(Stage.PIPELINE)(pipeline, beside)]


async def _load(stage: Stage, settings: ServiceSettings) -> Service:
    """Create a stage, and log its model and the loading time."""
    loading: asyncio.Future[Service] = asyncio.ensure_future(_factory_of(stage)(settings))
    checkpoint = getattr(settings, "checkpoint", None)
    started, facts = time.monotonic(), {"stage": stage.value}
    try:
        if checkpoint is not None:
            size = await asyncio.to_thread(_bytes_of, checkpoint)
            _log.info("loading", **facts, checkpoint=str(checkpoint), **size)
        while not (await asyncio.wait({loading}, timeout=_PROGRESS_SECONDS))[0]:
            _log.info("still loading", **facts, seconds=round(time.monotonic() - started))
        service = await loading
    finally:
        loading.cancel()
        # Where another stage failed first, asyncio would print this one's error as a traceback.
        await asyncio.gather(loading, return_exceptions=True)
    _log.info("loaded", **facts, seconds=round(time.monotonic() - started, 1))
    return service


def _bytes_of(checkpoint: Source) -> dict[str, int]:
    if not isinstance(checkpoint, Path):
        return {}  # it may not be downloaded yet
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    return {"bytes": sum(path.stat().st_size for path in files)}
