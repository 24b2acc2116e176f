"""The ledger, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

import vtryon
from vtryon.events import StepFinished
from vtryon.jobs import Job, JobState
from vtryon.types import PayloadKind, ResumePoint, TryOnOptions
from vtryon.v1 import job_pb2
from vtryon_services.jobs.database import Database
from vtryon_services.jobs.ledger import LeaseLostError, Ledger, Limits
from vtryon_services.jobs.records import NewJob, Outcome, Resume

NEW = NewJob(
    tenant="acme",
    request_id="one",
    digest="d",
    options=TryOnOptions(prompt="a secret wish", seed=1),
    pictures=[(PayloadKind.PERSON_IMAGE, "a/0"), (PayloadKind.GARMENT_IMAGE, "a/1")],
    timeout_seconds=60,
)
DONE = Outcome(JobState.SUCCEEDED, Job("", picture=vtryon.types.EncodedImage(width=3)), "a/result")


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    database = await Database.open(database_url)
    yield Ledger(database, Limits(max_waiting=1000, max_attempts=3, keep_seconds=100))
    await database.close()


def step(number: int) -> tuple[datetime, StepFinished]:
    return datetime.now(UTC), StepFinished(number, 9, 0.5)


async def sequence(ledger: Ledger, job_id: str) -> list[int]:
    bodies = await ledger.updates_of(job_id, 1)
    return [job_pb2.JobUpdate.FromString(body).sequence for body in bodies]


async def test_one_request_id_is_one_job(ledger: Ledger) -> None:
    made = await asyncio.gather(*(ledger.create(NEW) for _ in range(20)))
    assert len({job.id for job, _ in made}) == 1
    assert [fresh for _, fresh in made].count(True) == 1
    with pytest.raises(vtryon.RequestError) as caught:
        await ledger.create(replace(NEW, digest="another"))
    assert caught.value.reason is vtryon.Reason.ALREADY_EXISTS
    other, fresh = await ledger.create(replace(NEW, tenant="other", digest="another"))
    assert fresh
    assert other.state is JobState.QUEUED


async def test_a_job_of_one_tenant_is_not_found_by_another(ledger: Ledger) -> None:
    job, _ = await ledger.create(NEW)
    for call in (ledger.get, ledger.cancel, ledger.picture, ledger.erase):
        with pytest.raises(vtryon.RequestError) as caught:
            await call("eve", job.id)
        assert caught.value.reason is vtryon.Reason.NOT_FOUND
    assert (await ledger.page("eve", (), 10, "")).jobs == ()


async def test_every_job_is_leased_once(ledger: Ledger) -> None:
    for number in range(30):
        await ledger.create(replace(NEW, request_id=str(number)))
    taken: list[str] = []

    async def runner(owner: str) -> None:
        while (leased := await ledger.lease(owner, 60)) is not None:
            taken.append(leased.id)
            await ledger.finish(leased, DONE)

    await asyncio.gather(*(runner(str(number)) for number in range(6)))
    while (leased := await ledger.lease("last", 60)) is not None:  # skipped where others looked
        taken.append(leased.id)
    assert len(taken) == len(set(taken)) == 30


async def test_tenants_take_turns(ledger: Ledger) -> None:
    for number in range(6):
        await ledger.create(replace(NEW, tenant="many", request_id=str(number)))
    for number in range(2):
        await ledger.create(replace(NEW, tenant="few", request_id=str(number)))
    taken = [await ledger.lease("me", 60) for _ in range(4)]
    assert [one.tenant for one in taken if one] == ["many", "few", "many", "few"]


async def test_who_lost_the_lease_can_write_nothing(ledger: Ledger) -> None:
    job, _ = await ledger.create(NEW)
    first = await ledger.lease("slow", 0.05)
    assert first is not None
    await ledger.record(first, [step(1), step(2)], 2, 9)
    await ledger.keep_resume(first, Resume(ResumePoint(2, "a", "b"), "a/resume", (4, 2, 2)))
    await asyncio.sleep(0.1)
    second = await ledger.lease("quick", 60)
    assert second is not None
    assert (second.id, second.fence, second.attempts) == (job.id, 2, 2)
    assert second.resume == Resume(ResumePoint(2, "a", "b"), "a/resume", (4, 2, 2))
    for write in (
        ledger.record(first, [step(3)], 3, 9),
        ledger.keep_resume(first, Resume(ResumePoint(3, "a", "b"), "a/other", (4, 2, 2))),
        ledger.finish(first, DONE),
        ledger.put_back(first, 0, counted=True),
    ):
        with pytest.raises(LeaseLostError):
            await write
    await ledger.record(second, [step(3)], 3, 9)
    ended = await ledger.finish(second, DONE)
    assert (ended.state, ended.step, ended.picture.width) == (JobState.SUCCEEDED, 3, 3)
    assert await sequence(ledger, job.id) == list(range(1, ended.sequence + 1))


async def test_writers_at_once_leave_no_gap(ledger: Ledger) -> None:
    job, _ = await ledger.create(NEW)
    leased = await ledger.lease("me", 60)
    assert leased is not None
    await asyncio.gather(
        *(ledger.record(leased, [step(1)] * 3, 1, 9) for _ in range(10)),
        ledger.renew("me", 60),
        ledger.cancel("acme", job.id),
    )
    assert await sequence(ledger, job.id) == list(range(1, 33))
    assert await ledger.cancelled("me") == [job.id]


async def test_a_job_that_ends_its_runners_is_given_up(ledger: Ledger) -> None:
    job, _ = await ledger.create(NEW)
    for _ in range(3):
        assert await ledger.lease("dies", -1) is not None
    assert await ledger.lease("dies", 60) is None
    ended = await ledger.get("acme", job.id)
    assert (ended.state, ended.error.reason) == (JobState.FAILED, vtryon.Reason.STAGE_FAILED)


async def test_what_waits_can_be_cancelled_and_what_is_late_is_failed(ledger: Ledger) -> None:
    waiting, _ = await ledger.create(NEW)
    assert (await ledger.cancel("acme", waiting.id)).state is JobState.CANCELLED
    assert (await ledger.cancel("acme", waiting.id)).state is JobState.CANCELLED
    late, _ = await ledger.create(replace(NEW, request_id="late", timeout_seconds=0.01))
    await asyncio.sleep(0.05)
    await ledger.expired()
    ended = await ledger.get("acme", late.id)
    assert (ended.state, ended.error.reason) == (JobState.FAILED, vtryon.Reason.DEADLINE_PASSED)


async def test_a_job_put_back_waits_its_time(ledger: Ledger) -> None:
    await ledger.create(NEW)
    leased = await ledger.lease("me", 60)
    await ledger.put_back(leased, 0.2, counted=False)
    assert await ledger.lease("me", 60) is None
    await asyncio.sleep(0.25)
    again = await ledger.lease("me", 60)
    assert (again.attempts, again.fence) == (1, 2)


async def test_what_is_erased_is_gone(database_url: str) -> None:
    database = await Database.open(database_url)
    ledger = Ledger(database, Limits(max_waiting=10, max_attempts=3, keep_seconds=0.01))
    job, _ = await ledger.create(NEW)
    with pytest.raises(vtryon.RequestError):  # it has not ended
        await ledger.erase("acme", job.id)
    leased = await ledger.lease("me", 60)
    await ledger.finish(leased, DONE)
    await asyncio.sleep(0.05)
    assert set(await ledger.expired()) == {"a", job.id}
    gone = await ledger.get("acme", job.id)
    assert gone.erased
    assert gone.options.prompt == ""
    with pytest.raises(vtryon.RequestError, match="erased"):
        await ledger.picture("acme", job.id)
    async with database.reading() as connection:
        from sqlalchemy import select

        from vtryon_services.jobs.tables import jobs, updates

        everything = [*(await connection.execute(select(jobs))).all()]
        everything += (await connection.execute(select(updates))).all()
    assert "secret" not in repr(everything)
    await database.close()


async def test_pages_follow_one_another(ledger: Ledger) -> None:
    for number in range(7):
        await ledger.create(replace(NEW, request_id=str(number)))
    seen, token = [], ""
    for size in (3, 3, 1):
        page = await ledger.page("acme", (JobState.QUEUED,), 3, token)
        seen += [job.request_id for job in page.jobs]
        assert len(page.jobs) == size
        token = page.next_page_token
    assert seen == list("6543210")
    assert not token
    for bad in ("!", "bm90aGluZw=="):
        with pytest.raises(vtryon.RequestError, match="page_token"):
            await ledger.page("acme", (), 3, bad)


async def test_too_many_are_refused(database_url: str) -> None:
    database = await Database.open(database_url)
    ledger = Ledger(database, Limits(max_waiting=1, max_attempts=3, keep_seconds=1))
    await ledger.create(NEW)
    with pytest.raises(vtryon.OverloadedError):
        await ledger.create(replace(NEW, request_id="two"))
    await ledger.create(NEW)  # it is there already
    await database.close()


async def test_a_second_start_finds_the_tables_as_they_are(database_url: str) -> None:
    first, second = await asyncio.gather(Database.open(database_url), Database.open(database_url))
    started = time.monotonic()
    await Ledger(first, Limits(10, 3, 1)).create(NEW)
    assert len((await Ledger(second, Limits(10, 3, 1)).page("acme", (), 5, "")).jobs) == 1
    assert time.monotonic() - started < 5
    await first.close()
    await second.close()
