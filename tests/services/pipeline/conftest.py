"""The scripted mesh with all its ways in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.support.jobs import jobs_served

from vtryon_services.bridges.rest.server import begin
from vtryon_services.bridges.rest.settings import RestSettings


@pytest.fixture(scope="module")
async def mesh_and_rest(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, str]]:
    """The scripted mesh, whose default scale is 1, with jobs and REST."""
    folder = tmp_path_factory.mktemp("unused")
    async with jobs_served(folder, scripted_seconds=0.0, drain_grace_seconds=1.0) as target:
        rest = RestSettings.load(listen="127.0.0.1:0", pipeline_target=target)
        async with begin(rest) as began:
            yield target, f"http://{began.address}"
