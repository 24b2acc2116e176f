"""The whole mesh inside a program: the same servicers, on a private socket."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from vtryon.types import Stage
from vtryon_services.host import host, load_settings, settings_of
from vtryon_services.pipeline.settings import PipelineSettings
from vtryon_services.runtime.telemetry import set_up_logs


@asynccontextmanager
async def embedded_mesh(**given: Any) -> AsyncIterator[str]:
    """Start all services in this process; yields the target for `vtryon.Client`.

    The address is a socket in a folder that only this user can enter, and is deleted with it;
    or `listen`, where that is given.

    Args:
        given: settings of the services, such as `checkpoint`, `device`, `backend` or `listen`.

    Raises:
        SettingsError: a setting is invalid.
    """
    quiet = {"log_level": "error", "drain_grace_seconds": 2.0}
    # An ensemble holds the stages already.
    topology = PipelineSettings.load_from(given, list(map(settings_of, Stage))).topology
    stages = [Stage.PIPELINE] if topology == "ensemble" else list(Stage)
    settings = load_settings(stages, {**quiet, **given})[Stage.PIPELINE]
    if not structlog.is_configured():  # else this program logs in its own way
        set_up_logs(settings)
    with tempfile.TemporaryDirectory(prefix="vtryon-") as folder:
        address = given.get("listen", f"unix:{Path(folder) / 'mesh.sock'}")
        async with host(settings, stages, address, **given) as serving:
            yield serving.address
