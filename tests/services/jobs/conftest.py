from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from tests.support.jobs import jobs_served
from tests.support.postgres import find, postgres

import vtryon


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    if find() is None:
        pytest.skip("there is no PostgreSQL here")
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'jobs.sqlite'}"
        return
    url = request.getfixturevalue("postgres_url")
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text("DROP SCHEMA public CASCADE"))
        await connection.execute(text("CREATE SCHEMA public"))
    await engine.dispose()
    yield url


@pytest.fixture
async def jobs_mesh(database_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """All stages without a model, 20 ms a step, and jobs beside them; a target."""
    own = {"scripted_seconds": 0.02, "retry_seconds": 0.1, "drain_grace_seconds": 1.0}
    async with jobs_served(tmp_path, database_url=database_url, **own) as target:
        yield target


@pytest.fixture
async def caller(jobs_mesh: str) -> AsyncIterator[vtryon.Client]:
    async with vtryon.Client(jobs_mesh) as client:
        yield client
