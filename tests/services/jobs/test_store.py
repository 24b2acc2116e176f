"""The ledger, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

import vtryon
from vtryon.events import StepFinished
from vtryon.jobs import Job, JobState
from vtryon.types import PayloadKind, ResumePoint, TryOnOptions
from vtryon.v1 import job_pb2
from vtryon_services.jobs.changes import LeaseLostError
from vtryon_services.jobs.database import open_database
from vtryon_services.jobs.records import EventBatch, NewJob, Outcome, Resume
from vtryon_services.jobs.store import JobStore, StoreLimits

NOTHING = EventBatch((), 0, 0)
MIB = 1024 * 1024
NEW = NewJob(
    id="",
    tenant="acme",
    request_id="one",
    digest="d",
    options=TryOnOptions(seed=1),
    sealed=b"noise",
    pictures=[(PayloadKind.PERSON_IMAGE, "a/0"), (PayloadKind.GARMENT_IMAGE, "a/1")],
    timeout_seconds=60,
)


async def create(ledger: JobStore, **changes: Any) -> tuple[Job, bool]:
    kept, fresh = await ledger.create(replace(NEW, id=uuid.uuid4().hex, **changes))
    return kept.job, fresh


DONE = Outcome(JobState.SUCCEEDED, Job("", picture=vtryon.types.EncodedImage(width=3)), "a/result")


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[JobStore]:
    database = await open_database(database_url)
    yield JobStore(database, StoreLimits(max_waiting=1000, max_attempts=3, keep_seconds=100))
    await database.close()


def step(number: int) -> tuple[datetime, StepFinished]:
    return datetime.now(UTC), StepFinished(number, 9, 0.5)


async def sequence(ledger: JobStore, job_id: str) -> list[int]:
    bodies = await ledger.updates_of(job_id, 1)
    return [job_pb2.JobUpdate.FromString(body).sequence for body in bodies]


async def test_one_request_id_is_one_job(ledger: JobStore) -> None:
    made = await asyncio.gather(*(create(ledger) for _ in range(20)))
    assert len({job.id for job, _ in made}) == 1
    assert [fresh for _, fresh in made].count(True) == 1
    with pytest.raises(vtryon.RequestError) as caught:
        await create(ledger, digest="another")
    assert caught.value.reason is vtryon.Reason.ALREADY_EXISTS
    other, fresh = await create(ledger, tenant="other", digest="another")
    assert fresh
    assert other.state is JobState.QUEUED


async def test_a_job_of_one_tenant_is_not_found_by_another(ledger: JobStore) -> None:
    job, _ = await create(ledger)
    for call in (ledger.get, ledger.cancel, ledger.picture, ledger.erase):
        with pytest.raises(vtryon.RequestError) as caught:
            await call("eve", job.id)
        assert caught.value.reason is vtryon.Reason.NOT_FOUND
    assert await ledger.page("eve", (), 10, "", MIB) == ([], "")


async def test_every_job_is_leased_once(ledger: JobStore) -> None:
    for number in range(30):
        await create(ledger, request_id=str(number))
    taken: list[str] = []

    async def runner(owner: str) -> None:
        while (leased := await ledger.leases.lease(owner, 60)) is not None:
            taken.append(leased.id)
            await ledger.leases.finish(leased, DONE, NOTHING)

    await asyncio.gather(*(runner(str(number)) for number in range(6)))
    while (leased := await ledger.leases.lease("last", 60)) is not None:
        taken.append(leased.id)
    assert len(taken) == len(set(taken)) == 30


async def test_tenants_take_turns(ledger: JobStore) -> None:
    for number in range(6):
        await create(ledger, tenant="many", request_id=str(number))
    for number in range(2):
        await create(ledger, tenant="few", request_id=str(number))
    taken = [await ledger.leases.lease("me", 60) for _ in range(4)]
    assert [one.tenant for one in taken if one] == ["many", "few", "many", "few"]


async def test_a_tenant_leaves_runners_to_others(ledger: JobStore) -> None:
    for number in range(6):
        await create(ledger, tenant="many", request_id=str(number))
    taken = [await ledger.leases.lease("me", 60, 3) for _ in range(4)]
    assert [one is not None for one in taken] == [True, True, True, False]
    assert await ledger.leases.lease("you", 60, 3) is not None  # the limit is a runner's
    await create(ledger, tenant="few", request_id="0")
    assert (await ledger.leases.lease("me", 60, 3)).tenant == "few"
    await ledger.leases.finish(taken[0], DONE, NOTHING)
    assert (await ledger.leases.lease("me", 60, 3)).tenant == "many"


async def test_a_paused_tenant_starts_no_job(ledger: JobStore) -> None:
    for tenant in ("many", "few", "many"):
        await create(ledger, tenant=tenant, request_id=uuid.uuid4().hex)
    taken = [await ledger.leases.lease("me", 60, paused=("many",)) for _ in range(2)]
    assert [one and one.tenant for one in taken] == ["few", None]
    assert (await ledger.leases.lease("me", 60)).tenant == "many"


async def test_who_lost_the_lease_can_write_nothing(ledger: JobStore) -> None:
    job, _ = await create(ledger)
    first = await ledger.leases.lease("slow", 0.05)
    assert first is not None
    await ledger.leases.record(first, EventBatch([step(1), step(2)], 2, 9))
    await ledger.leases.keep_resume(first, Resume(ResumePoint(2, "a", "b"), "a/resume", (4, 2, 2)))
    await asyncio.sleep(0.1)
    second = await ledger.leases.lease("quick", 60)
    assert second is not None
    assert (second.id, second.fence, second.attempts) == (job.id, 2, 2)
    assert second.resume == Resume(ResumePoint(2, "a", "b"), "a/resume", (4, 2, 2))
    for write in (
        ledger.leases.record(first, EventBatch([step(3)], 3, 9)),
        ledger.leases.keep_resume(first, Resume(ResumePoint(3, "a", "b"), "a/other", (4, 2, 2))),
        ledger.leases.finish(first, DONE, EventBatch([step(3)], 3, 9)),
        ledger.leases.put_back(first, 0, counted=True),
    ):
        with pytest.raises(LeaseLostError):
            await write
    ended = (await ledger.leases.finish(second, DONE, EventBatch([step(3)], 3, 9))).job
    assert (ended.state, ended.step, ended.picture.width) == (JobState.SUCCEEDED, 3, 3)
    assert await sequence(ledger, job.id) == list(range(1, ended.sequence + 1))


async def test_writers_at_once_leave_no_gap(ledger: JobStore) -> None:
    job, _ = await create(ledger)
    leased = await ledger.leases.lease("me", 60)
    assert leased is not None
    await asyncio.gather(
        *(ledger.leases.record(leased, EventBatch([step(1)] * 3, 1, 9)) for _ in range(10)),
        ledger.leases.renew("me", 60),
        ledger.cancel("acme", job.id),
    )
    assert await sequence(ledger, job.id) == list(range(1, 33))
    assert await ledger.leases.cancelled("me") == [job.id]


async def test_a_job_that_ends_its_runners_is_given_up(ledger: JobStore) -> None:
    job, _ = await create(ledger)
    for _ in range(3):
        assert await ledger.leases.lease("dies", -1) is not None
    assert await ledger.leases.lease("dies", 60) is None
    ended = (await ledger.get("acme", job.id)).job
    assert (ended.state, ended.error.reason) == (JobState.FAILED, vtryon.Reason.STAGE_FAILED)


async def test_what_waits_can_be_cancelled_and_what_is_late_is_failed(ledger: JobStore) -> None:
    waiting, _ = await create(ledger)
    assert (await ledger.cancel("acme", waiting.id)).job.state is JobState.CANCELLED
    assert (await ledger.cancel("acme", waiting.id)).job.state is JobState.CANCELLED
    late, _ = await create(ledger, request_id="late", timeout_seconds=0.01)
    await asyncio.sleep(0.05)
    await ledger.erasures.expire()
    ended = (await ledger.get("acme", late.id)).job
    assert (ended.state, ended.error.reason) == (JobState.FAILED, vtryon.Reason.DEADLINE_PASSED)


async def test_a_job_put_back_waits_its_time(ledger: JobStore) -> None:
    await create(ledger)
    leased = await ledger.leases.lease("me", 60)
    await ledger.leases.put_back(leased, 0.2, counted=False)
    assert await ledger.leases.lease("me", 60) is None
    await asyncio.sleep(0.25)
    again = await ledger.leases.lease("me", 60)
    assert (again.attempts, again.fence) == (1, 2)


async def test_a_job_names_its_folders_until_they_are_confirmed_to_be_gone(
    ledger: JobStore,
) -> None:
    job, _ = await create(ledger)
    leased = await ledger.leases.lease("me", 60)
    marked = await ledger.erase("acme", job.id)
    assert (marked.job.erasing, marked.job.erased, marked.sealed) == (True, False, b"")
    assert await ledger.erasures.due("") == []  # it has not ended
    assert await ledger.leases.cancelled("me") == [job.id]
    await ledger.leases.finish(leased, DONE, NOTHING)
    for _ in range(2):
        assert await ledger.erasures.due("") == [(job.id, sorted({"a", job.id}))]
    with pytest.raises(vtryon.RequestError, match="erased"):
        await ledger.picture("acme", job.id)
    await ledger.erasures.confirm(job.id)
    gone = (await ledger.get("acme", job.id)).job
    assert (gone.erasing, gone.erased) == (False, True)
    assert await ledger.erasures.due("") == []


async def test_a_job_is_marked_when_its_time_to_be_kept_is_over(database_url: str) -> None:
    database = await open_database(database_url)
    ledger = JobStore(database, StoreLimits(max_waiting=10, max_attempts=3, keep_seconds=-1))
    job, _ = await create(ledger)
    await ledger.leases.finish(await ledger.leases.lease("me", 60), DONE, NOTHING)
    await ledger.erasures.expire()
    assert [one for one, _ in await ledger.erasures.due("")] == [job.id]
    await database.close()


async def test_a_folder_is_named_before_it_is_written_to(database_url: str) -> None:
    database = await open_database(database_url)
    ledger = JobStore(database, StoreLimits(10, 3, 100, leftover_seconds=-1))
    await ledger.erasures.expect("nobody", "")
    new = replace(NEW, id=uuid.uuid4().hex)
    await ledger.erasures.expect(new.id, new.tenant)
    await ledger.create(new)
    assert await ledger.erasures.leftover() == ["nobody"]
    await ledger.erasures.postpone("nobody", 60)
    assert await ledger.erasures.leftover() == []
    await database.close()


@pytest.mark.parametrize("seed", [2**63 - 1, 2**63, 2**64 - 1])
async def test_a_seed_of_64_bits_is_kept_as_it_is(ledger: JobStore, seed: int) -> None:
    job, _ = await create(ledger, options=TryOnOptions(seed=seed))
    assert (await ledger.get("acme", job.id)).job.options.seed == seed
    assert (await ledger.leases.lease("me", 60)).options.seed == seed


async def test_pages_follow_one_another(ledger: JobStore) -> None:
    for number in range(7):
        await create(ledger, request_id=str(number))
    seen, token = [], ""
    for size in (3, 3, 1):
        page, token = await ledger.page("acme", (JobState.QUEUED,), 3, token, MIB)
        seen += [kept.message.request_id for kept in page]
        assert len(page) == size
    assert seen == list("6543210")
    assert not token
    texts = ("nothing", "nan/x", "inf/x", "1e999/x", "-1/", "1/\0", "1/" + "x" * 100_000)
    for bad in ("!", *(base64.urlsafe_b64encode(text.encode()).decode() for text in texts)):
        with pytest.raises(vtryon.RequestError, match="page_token"):
            await ledger.page("acme", (), 3, bad, MIB)


async def test_a_page_ends_when_it_is_large(ledger: JobStore) -> None:
    for number in range(5):
        await create(ledger, request_id=str(number), sealed=b"x" * 1000)
    seen, token, pages = [], "", 0
    while True:
        page, token = await ledger.page("acme", (), 100, token, 2500)
        seen += [kept.message.request_id for kept in page]
        pages += 1
        if not token:
            break
    assert seen == list("43210")
    assert pages == 3  # of two jobs, and the last of one
    [first], token = await ledger.page("acme", (), 100, "", 10)
    assert first.message.request_id == "4"  # never a page of none, which would have no end
    assert token


async def test_a_full_queue_has_room_for_a_tenant_with_less_than_its_share(
    database_url: str,
) -> None:
    database = await open_database(database_url)
    ledger = JobStore(database, StoreLimits(max_waiting=4, max_attempts=3, keep_seconds=1))
    for number in range(4):
        await create(ledger, tenant="many", request_id=str(number))
    for number in range(2):
        await create(ledger, tenant="few", request_id=str(number))
    for tenant, own in (("many", 4), ("few", 2)):
        with pytest.raises(vtryon.OverloadedError, match=f"{own} of them are yours"):
            await create(ledger, tenant=tenant, request_id="more")
    await database.close()


async def test_too_many_are_refused(database_url: str) -> None:
    database = await open_database(database_url)
    ledger = JobStore(database, StoreLimits(max_waiting=1, max_attempts=3, keep_seconds=1))
    await create(ledger)
    with pytest.raises(vtryon.OverloadedError):
        await create(ledger, request_id="two")
    await create(ledger)  # it is there already
    await database.close()


async def test_a_second_start_finds_the_tables_as_they_are(database_url: str) -> None:
    first, second = await asyncio.gather(open_database(database_url), open_database(database_url))
    started = time.monotonic()
    await create(JobStore(first, StoreLimits(10, 3, 1)))
    page, _ = await JobStore(second, StoreLimits(10, 3, 1)).page("acme", (), 5, "", MIB)
    assert len(page) == 1
    assert time.monotonic() - started < 5
    await first.close()
    await second.close()
