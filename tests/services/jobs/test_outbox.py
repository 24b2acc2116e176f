"""Changes of state are kept until they are published, and given to one owner at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.services.jobs.test_store import DONE, NOTHING, create

from vtryon.jobs import JobState
from vtryon_services.jobs import outbox as module
from vtryon_services.jobs.changes import LeaseLostError
from vtryon_services.jobs.database import open_database
from vtryon_services.jobs.origin import Origin
from vtryon_services.jobs.outbox import JobOutbox
from vtryon_services.jobs.store import JobStore, StoreLimits


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[JobStore]:
    database = await open_database(database_url)
    limits = StoreLimits(max_waiting=1000, max_attempts=3, keep_seconds=100)
    yield JobStore(database, limits, published=True)
    await database.close()


@pytest.fixture
def outbox(ledger: JobStore) -> JobOutbox:
    return ledger.outbox


async def test_each_job_s_changes_come_in_their_order(ledger: JobStore, outbox: JobOutbox) -> None:
    async def draw(number: int) -> None:
        labels = {"order": str(number)}
        await create(ledger, request_id=str(number), labels=labels)
        while (leased := await ledger.leases.lease("me", 60)) is not None:
            await ledger.leases.finish(leased, DONE, NOTHING)

    await asyncio.gather(*(draw(number) for number in range(8)))
    taken = await outbox.take("one", (), 1000)
    told: dict[str, list[JobState]] = {}
    for one in taken:
        job = one.update.job
        assert one.tenant == "acme"
        assert job.options is None  # no prompts
        told.setdefault(job.labels["order"], []).append(job.state)
    states = [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
    assert told == {str(number): states for number in range(8)}


async def test_outcomes_have_the_trace_and_the_correlation_id_of_their_job(
    ledger: JobStore, outbox: JobOutbox
) -> None:
    origin = Origin("00-1-2-01", "vendor=one", "shop=north", b"\0\xff" * 512)
    await create(ledger, origin=origin)
    leased = await ledger.leases.lease("me", 60)
    assert leased.origin == origin
    await ledger.leases.finish(leased, DONE, NOTHING)
    taken = await outbox.take("one", (), 1000)
    assert len(taken) == 3
    for one in taken:
        trace = (one.traceparent, one.tracestate, one.baggage)
        assert Origin(*trace, one.correlation_id) == origin


async def test_what_is_not_published_is_given_again(ledger: JobStore, outbox: JobOutbox) -> None:
    for number in range(3):
        await create(ledger, request_id=str(number))
    first = await outbox.take("one", (), 2)
    assert [one.id for one in await outbox.take("one", (), 2)] == [one.id for one in first]
    rest = await outbox.take("one", [one.id for one in first], 10)
    assert [one.update.job.request_id for one in rest] == ["2"]
    assert await outbox.take("one", [rest[0].id], 10) == []
    assert await outbox.count() == 0


async def test_one_owner_at_a_time(ledger: JobStore, outbox: JobOutbox, monkeypatch) -> None:
    await create(ledger)
    assert await outbox.take("one", (), 10)
    assert await outbox.take("two", (), 10) == []
    await outbox.take("one", (), 0)
    assert await outbox.take("two", (), 10)
    assert await outbox.take("one", (), 10) == []
    monkeypatch.setattr(module, "_TURN_SECONDS", -1.0)
    await outbox.take("two", (), 10)  # as if it had been said long ago
    assert await outbox.take("one", (), 10)


async def test_a_change_that_is_taken_back_is_not_told(ledger: JobStore, outbox: JobOutbox) -> None:
    await create(ledger)
    leased = await ledger.leases.lease("me", -1)
    assert await ledger.leases.lease("you", 60) is not None
    with pytest.raises(LeaseLostError):
        await ledger.leases.finish(leased, DONE, NOTHING)
    states = [one.update.job.state for one in await outbox.take("one", (), 10)]
    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.RUNNING]
