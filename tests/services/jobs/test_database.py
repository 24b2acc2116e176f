"""Transactions take turns among tenants, and leave nothing of one whose caller has left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, insert, select

from vtryon.errors import SettingsError
from vtryon_services import checks
from vtryon_services.jobs.database import Database, open_database
from vtryon_services.jobs.database.turns import Turns
from vtryon_services.jobs.tables import leftovers


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await open_database(database_url)
    yield opened
    await opened.close()


async def folders(database: Database) -> list[str]:
    wanted = select(leftovers.c.folder).order_by(leftovers.c.folder)
    return list(await database.read(lambda db: db.execute(wanted).scalars().all()))


def adding(folder: str) -> tuple[object, dict[str, object]]:
    return insert(leftovers), {"folder": folder, "due": 0.0}


async def test_an_error_leaves_nothing(database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.execute(*adding("a"))
        raise LookupError("no")

    with pytest.raises(LookupError):
        await database.write(work)
    assert await folders(database) == []
    await database.write(lambda db: db.execute(*adding("b")))
    assert await folders(database) == ["b"]


async def test_a_cancelled_write_leaves_nothing(tmp_path) -> None:
    database = await open_database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    begun, over = threading.Event(), threading.Event()

    def work(connection: Connection) -> None:
        connection.execute(*adding("a"))
        begun.set()
        assert over.wait(10)

    task = asyncio.create_task(database.write(work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()  # the next one would write beside it
    over.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await database.write(lambda db: db.execute(*adding("b")))
    assert await folders(database) == ["b"]
    await database.close()


async def test_writes_of_many_tenants_at_once(database: Database) -> None:
    await asyncio.gather(
        *(
            database.write(lambda db, name=f"{number:02}": db.execute(*adding(name)), f"{number}")
            for number in range(20)
        )
    )
    assert len(await folders(database)) == 20


REFUSED = (
    *("sqlite://", "sqlite:///:memory:", "sqlite+aiosqlite:///x", "mysql://x/y", "postgresql"),
    *("postgresql://x/y", "postgresql+psycopg://x/y"),
)


@pytest.mark.parametrize("url", [*REFUSED, "sqlite:////nowhere/at/all"])
async def test_a_database_that_can_t_be_used_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="jobs' database"):
        await open_database(url)


@pytest.mark.parametrize("url", REFUSED)
def test_the_doctor_refuses_what_the_service_does(url: str, monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_JOBS_DATABASE_URL", url)
    [finding] = checks.jobs()
    assert (finding.ok, finding.remedy) == (False, "set VTRYON_JOBS_DATABASE_URL")
    assert "jobs' database" in finding.found


async def test_many_of_one_tenant_delay_another_by_one() -> None:
    turns, order = Turns(), list[str]()

    async def take(name: str) -> None:
        async with turns.of(name[0]):
            order.append(name)
            await asyncio.sleep(0)

    names = ["a1", "a2", "a3", "a4", "b1", "c1", "b2"]
    await asyncio.gather(*(take(name) for name in names))
    assert order == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_who_left_the_queue_is_passed_over() -> None:
    turns, order = Turns(), list[str]()
    release = asyncio.Event()

    async def take(name: str) -> None:
        async with turns.of(name[0]):
            order.append(name)
            await release.wait()

    tasks = {name: asyncio.create_task(take(name)) for name in ("a1", "a2", "b1", "a3")}
    await asyncio.sleep(0)
    tasks["a2"].cancel()
    release.set()
    tasks["a1"].cancel()  # holds the turn
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert order == ["a1", "b1", "a3"]


async def test_a_turn_granted_to_one_who_leaves_goes_on() -> None:
    turns, order = Turns(), list[str]()

    async def take(name: str) -> None:
        async with turns.of(name):
            order.append(name)
            await asyncio.sleep(0)

    first = asyncio.create_task(take("a"))
    second = asyncio.create_task(take("b"))
    third = asyncio.create_task(take("c"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the first is over: the second has been granted, and not woken yet
    second.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(first, third)
    assert order[-1] == "c"
