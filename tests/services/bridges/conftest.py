from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
from tests.support.jobs import jobs_served

from vtryon_services.bridges.rest.server import begin
from vtryon_services.bridges.rest.settings import RestSettings

Bridge = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(scope="package")
async def rest(scripted_mesh: str) -> AsyncIterator[str]:
    """The bridge over the scripted mesh, on a port of its own; its URL."""
    settings = RestSettings.load(listen="127.0.0.1:0", pipeline_target=scripted_mesh)
    async with begin(settings) as began:
        yield f"http://{began.address}"


@pytest.fixture(scope="package")
async def drawing_rest(mesh: str) -> AsyncIterator[str]:
    """The bridge over the mesh with the shipped checkpoint."""
    settings = RestSettings.load(listen="127.0.0.1:0", pipeline_target=mesh)
    async with begin(settings) as began:
        yield f"http://{began.address}"


@pytest.fixture
async def http(rest: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=rest, timeout=30) as client:
        yield client


@pytest.fixture
async def drawing_http(drawing_rest: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=drawing_rest, timeout=30) as client:
        yield client


@pytest.fixture(scope="package")
async def jobs_rest(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The bridge over a scripted mesh that has jobs as well; its URL."""
    folder = tmp_path_factory.mktemp("jobs")
    async with jobs_served(folder, scripted_seconds=0.02, drain_grace_seconds=1.0) as target:
        settings = RestSettings.load(listen="127.0.0.1:0", pipeline_target=target)
        async with begin(settings) as began:
            yield f"http://{began.address}"


@pytest.fixture
async def jobs_http(jobs_rest: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=jobs_rest, timeout=30) as client:
        yield client


@pytest.fixture
def bridge(scripted_mesh: str) -> Bridge:
    """Serve the bridge over the scripted mesh with settings of a test's own; gives a client."""

    @asynccontextmanager
    async def serve(**given: Any) -> AsyncIterator[httpx.AsyncClient]:
        settings = RestSettings.load(
            listen="127.0.0.1:0", **{"pipeline_target": scripted_mesh, **given}
        )
        async with (
            begin(settings) as began,
            httpx.AsyncClient(base_url=f"http://{began.address}", timeout=30) as client,
        ):
            yield client

    return serve
