from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from vtryon_services.bridges.rest.server import begin
from vtryon_services.bridges.rest.settings import RestSettings


@pytest.fixture(scope="session")
async def rest(scripted_mesh: str) -> AsyncIterator[str]:
    """The bridge over the scripted mesh, on a port of its own; its URL."""
    settings = RestSettings.load(listen="127.0.0.1:0", pipeline_target=scripted_mesh)
    async with begin(settings) as began:
        yield f"http://{began.address}"


@pytest.fixture(scope="session")
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
