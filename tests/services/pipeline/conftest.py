"""The scripted mesh with all its ways in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from vtryon.types import Stage
from vtryon_services.bridges.rest.server import begin
from vtryon_services.bridges.rest.settings import RestSettings
from vtryon_services.host import host
from vtryon_services.jobs.settings import JobsSettings


@pytest.fixture(scope="module")
async def mesh_and_rest(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, str]]:
    """The scripted mesh, whose default scale is 1, with jobs and REST."""
    folder = tmp_path_factory.mktemp("unused")
    given = {
        "backend": "scripted",
        "scripted_seconds": 0.0,
        "database_url": f"sqlite+aiosqlite:///{folder / 'jobs.sqlite'}",
        "artifacts_url": str(folder / "artifacts"),
        "log_level": "error",
        "drain_grace_seconds": 1.0,
    }
    settings = JobsSettings.load_from(given)
    async with host(settings, [*Stage, "jobs"], "127.0.0.1:0", **given) as serving:
        rest = RestSettings.load(listen="127.0.0.1:0", pipeline_target=serving.address)
        async with begin(rest) as began:
            yield serving.address, f"http://{began.address}"
