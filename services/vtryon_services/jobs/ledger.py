"""What is known of every job, in SQL; who writes under a lease proves that it still holds."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, and_, func, insert, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from vtryon.errors import OverloadedError, Reason, RequestError
from vtryon.events import Event
from vtryon.jobs import Job, JobPage, JobState, JobUpdate
from vtryon.v1 import job_pb2, pipeline_pb2
from vtryon_services.jobs.database import Database
from vtryon_services.jobs.outbox import Outbox, keep
from vtryon_services.jobs.records import (
    Leased,
    NewJob,
    Outcome,
    Resume,
    failed,
    job_of,
    leased_of,
    out_of_time,
    read_token,
    token_of,
)
from vtryon_services.jobs.tables import jobs, updates

_WAIT_FOR_ROOM_SECONDS = 5.0
_ENDED = [state.value for state in JobState if state.ended]


class LeaseLostError(Exception):
    """Somebody else has the job by now; what this runner knows of it is worth nothing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many jobs may wait, how often each is tried, how long its pictures are kept."""

    max_waiting: int
    max_attempts: int
    keep_seconds: float


class Ledger:
    """Every change is one transaction, and leaves an update with the next sequence number.

    Args:
        published: whether changes of state go to the outbox as well.
    """

    def __init__(self, database: Database, limits: Limits, *, published: bool = False) -> None:
        self._database = database
        self._limits = limits
        self._published = published
        self.outbox = Outbox(database)

    async def create(self, new: NewJob) -> tuple[Job, bool]:
        """Write a job down, or find the one of the same request id; true where it is new.

        Raises:
            RequestError: ALREADY_EXISTS, the id stands for something else.
            OverloadedError: too many wait.
        """
        try:
            async with self._database.writing() as connection:
                if (found := await self._by_request(connection, new)) is not None:
                    return found, False
                await self._check_room(connection)
                return await self._insert(connection, new), True
        except IntegrityError:  # the same id at the same moment
            async with self._database.reading() as connection:
                found = await self._by_request(connection, new)
            assert found is not None
            return found, False

    async def _by_request(self, connection: AsyncConnection, new: NewJob) -> Job | None:
        same = and_(jobs.c.tenant == new.tenant, jobs.c.request_id == new.request_id)
        row = (await connection.execute(select(jobs).where(same))).one_or_none()
        if row is None:
            return None
        if row.digest != new.digest:
            raise RequestError(
                "this request id stands for another request already",
                reason=Reason.ALREADY_EXISTS,
                metadata={"job_id": row.id},
            )
        return job_of(row)

    async def _check_room(self, connection: AsyncConnection) -> None:
        waiting = select(func.count()).where(jobs.c.state == JobState.QUEUED.value)
        if (await connection.execute(waiting)).scalar_one() >= self._limits.max_waiting:
            raise OverloadedError(
                f"{self._limits.max_waiting} jobs are waiting already",
                retry_after_seconds=_WAIT_FOR_ROOM_SECONDS,
            )

    async def _insert(self, connection: AsyncConnection, new: NewJob) -> Job:
        now = time.time()
        await connection.execute(
            insert(jobs).values(
                id=uuid.uuid4().hex,
                tenant=new.tenant,
                request_id=new.request_id,
                digest=new.digest,
                state=JobState.QUEUED.value,
                options=new.options.to_proto().SerializeToString(),
                pictures=[[kind.value, artifact] for kind, artifact in new.pictures],
                traceparent=new.traceparent,
                labels=dict(new.labels),
                created_at=now,
                not_before=now,
                deadline=now + new.timeout_seconds,
            )
        )
        same = and_(jobs.c.tenant == new.tenant, jobs.c.request_id == new.request_id)
        return await self._change(connection, same, {})

    async def get(self, tenant: str, job_id: str) -> Job:
        """Give a job of a tenant.

        Raises:
            RequestError: NOT_FOUND.
        """
        return job_of(await self._row(tenant, job_id))

    async def picture(self, tenant: str, job_id: str) -> tuple[Job, str]:
        """Give a job and the artifact of its picture.

        Raises:
            RequestError: NOT_FOUND, also where there is no picture.
        """
        row = await self._row(tenant, job_id)
        if row.picture_artifact is None or row.erased:
            state = "its pictures were erased" if row.erased else f"it is {row.state}"
            raise RequestError(f"job {job_id} has no picture: {state}", reason=Reason.NOT_FOUND)
        return job_of(row), str(row.picture_artifact)

    async def _row(self, tenant: str, job_id: str) -> Row[Any]:
        async with self._database.reading() as connection:
            found = await connection.execute(select(jobs).where(_own(tenant, job_id)))
            row = found.one_or_none()
        if row is None:
            raise _not_found(job_id)
        return row

    async def page(self, tenant: str, states: Sequence[JobState], size: int, token: str) -> JobPage:
        """Give a tenant's jobs, the newest first.

        Raises:
            RequestError: the token is none.
        """
        wanted = select(jobs).where(jobs.c.tenant == tenant)
        if states:
            wanted = wanted.where(jobs.c.state.in_([state.value for state in states]))
        if token:
            wanted = wanted.where(tuple_(jobs.c.created_at, jobs.c.id) < read_token(token))
        wanted = wanted.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(size + 1)
        async with self._database.reading() as connection:
            rows = (await connection.execute(wanted)).all()
        more = len(rows) > size
        return JobPage(
            tuple(job_of(row) for row in rows[:size]), token_of(rows[size - 1]) if more else ""
        )

    async def cancel(self, tenant: str, job_id: str) -> Job:
        """End a job that waits; ask the runner of one that runs.

        Raises:
            RequestError: NOT_FOUND.
        """
        async with self._database.writing() as connection:
            found = await connection.execute(select(jobs).where(_own(tenant, job_id)))
            row = found.one_or_none()
            if row is None:
                raise _not_found(job_id)
            if row.state == JobState.QUEUED:
                return await self._change(
                    connection, jobs.c.id == job_id, self._ending(JobState.CANCELLED)
                )
            if row.state == JobState.RUNNING:
                await connection.execute(
                    update(jobs).where(jobs.c.id == job_id).values(cancel_requested=True)
                )
            return job_of(row)

    async def erase(self, tenant: str, job_id: str) -> tuple[Job, list[str]]:
        """Forget what an ended job was about; gives the folders of artifacts to delete.

        Raises:
            RequestError: NOT_FOUND.
        """
        async with self._database.writing() as connection:
            ended = and_(_own(tenant, job_id), jobs.c.state.in_(_ENDED))
            row = (await connection.execute(select(jobs).where(ended))).one_or_none()
            if row is None:
                raise _not_found(job_id)
            return await self._erase(connection, row)

    async def expired(self) -> list[str]:
        """Forget jobs whose time to be kept is over, fail those out of time; gives folders."""
        now = time.time()
        folders: list[str] = []
        late = and_(jobs.c.state == JobState.QUEUED.value, jobs.c.deadline < now)
        kept = and_(jobs.c.expires_at < now, jobs.c.erased.is_(False))
        async with self._database.reading() as connection:
            found = await connection.execute(select(jobs.c.id).where(or_(late, kept)).limit(1))
            if found.first() is None:
                return []
        async with self._database.writing() as connection:
            for row in (await connection.execute(select(jobs).where(late))).all():
                outcome = out_of_time(row.id)
                await self._change(
                    connection, jobs.c.id == row.id, self._ending(JobState.FAILED, outcome)
                )
            for row in (await connection.execute(select(jobs).where(kept).limit(100))).all():
                folders += (await self._erase(connection, row))[1]
        return folders

    async def _erase(self, connection: AsyncConnection, row: Row[Any]) -> tuple[Job, list[str]]:
        options = pipeline_pb2.TryOnOptions.FromString(row.options)
        options.ClearField("prompt")
        options.ClearField("negative_prompt")
        own = updates.c.job_id == row.id
        for told in (await connection.execute(select(updates).where(own))).all():
            body = job_pb2.JobUpdate.FromString(told.body)
            if body.event.HasField("preview"):
                body.event.preview.ClearField("picture")
                this = and_(own, updates.c.sequence == told.sequence)
                new = {"body": body.SerializeToString()}
                await connection.execute(update(updates).where(this).values(**new))
        changed = (
            update(jobs)
            .where(jobs.c.id == row.id)
            .values(erased=True, options=options.SerializeToString(), pictures=[])
            .returning(jobs)
        )
        after = (await connection.execute(changed)).one()
        folders = {row.id, *(name.partition("/")[0] for _, name in row.pictures)}
        return job_of(after), sorted(folders)

    async def counts(self) -> dict[JobState, int]:
        """Count the jobs that have not ended, of all tenants."""
        open_states = [JobState.QUEUED, JobState.RUNNING]
        wanted = (
            select(jobs.c.state, func.count())
            .where(jobs.c.state.in_([state.value for state in open_states]))
            .group_by(jobs.c.state)
        )
        async with self._database.reading() as connection:
            found = {row[0]: row[1] for row in (await connection.execute(wanted)).all()}
        return {state: found.get(state.value, 0) for state in open_states}

    async def updates_of(self, job_id: str, first: int) -> Sequence[bytes]:
        """Give a job's updates from a sequence number on: vtryon.v1.JobUpdate, as it is kept."""
        wanted = (
            select(updates.c.body)
            .where(updates.c.job_id == job_id, updates.c.sequence >= first)
            .order_by(updates.c.sequence)
            .limit(1000)
        )
        async with self._database.reading() as connection:
            return (await connection.execute(wanted)).scalars().all()

    async def lease(self, owner: str, seconds: float) -> Leased | None:
        """Take the next job: of the tenant with the fewest running, the oldest; None for none.

        A job whose runner said nothing for the length of its lease is taken from it.
        """
        now = time.time()
        free = or_(
            and_(jobs.c.state == JobState.QUEUED.value, jobs.c.not_before <= now),
            and_(jobs.c.state == JobState.RUNNING.value, jobs.c.lease_until < now),
        )
        async with self._database.reading() as connection:
            if (await connection.execute(select(jobs.c.id).where(free).limit(1))).first() is None:
                return None
        running = jobs.alias("running")
        busy = (
            select(func.count())
            .where(running.c.tenant == jobs.c.tenant, running.c.state == JobState.RUNNING.value)
            .scalar_subquery()
        )
        first = (
            select(jobs)
            .where(free)
            .order_by(busy, jobs.c.created_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        async with self._database.writing() as connection:
            row = (await connection.execute(first)).one_or_none()
            if row is None:
                return None
            if (outcome := self._not_to_be_run(row, now)) is not None:
                state = outcome.state or JobState.FAILED
                await self._change(connection, jobs.c.id == row.id, self._ending(state, outcome))
                return None
            taken = {
                "state": JobState.RUNNING.value,
                "owner": owner,
                "lease_until": now + seconds,
                "fence": row.fence + 1,
                "attempts": row.attempts + 1,
                "started_at": row.started_at or now,
            }
            await self._change(connection, jobs.c.id == row.id, taken)
        return leased_of(row)

    def _not_to_be_run(self, row: Row[Any], now: float) -> Job | None:
        """Say how a job ends that was cancelled, came too late, or ends every runner."""
        if row.cancel_requested:
            return Job(row.id, state=JobState.CANCELLED)
        if row.deadline < now:
            return out_of_time(row.id)
        if row.attempts >= self._limits.max_attempts:
            words = f"{row.attempts} attempts ended without a word, their runners with them"
            return failed(row.id, Reason.STAGE_FAILED, words, {})
        return None

    async def renew(self, owner: str, seconds: float) -> None:
        """Keep all jobs of a runner."""
        async with self._database.writing() as connection:
            await connection.execute(
                update(jobs)
                .where(jobs.c.owner == owner, jobs.c.state == JobState.RUNNING.value)
                .values(lease_until=time.time() + seconds)
            )

    async def cancelled(self, owner: str) -> list[str]:
        """Give the runner's jobs that are to be cancelled."""
        wanted = select(jobs.c.id).where(jobs.c.owner == owner, jobs.c.cancel_requested.is_(True))
        async with self._database.reading() as connection:
            return list((await connection.execute(wanted)).scalars().all())

    async def record(
        self, leased: Leased, happened: Sequence[tuple[datetime, Event]], step: int, steps: int
    ) -> None:
        """Write down what a try-on said.

        Raises:
            LeaseLostError: somebody else has the job.
        """
        async with self._database.writing() as connection:
            values = {"step": step, "steps": steps} if steps else {}
            await self._advance(connection, _held(leased), values, happened)

    async def keep_resume(self, leased: Leased, resume: Resume) -> None:
        """Note from where another attempt can go on.

        Raises:
            LeaseLostError: somebody else has the job.
        """
        changed = (
            update(jobs)
            .where(_held(leased))
            .values(
                resume_step=resume.point.step,
                resume_artifact=resume.artifact,
                resume_shape={
                    "shape": list(resume.shape),
                    "model_digest": resume.point.model_digest,
                    "encoders_digest": resume.point.encoders_digest,
                },
            )
        )
        async with self._database.writing() as connection:
            if not (await connection.execute(changed)).rowcount:
                raise LeaseLostError

    async def finish(self, leased: Leased, outcome: Outcome) -> Job:
        """End a job.

        Raises:
            LeaseLostError: somebody else has the job.
        """
        values = self._ending(outcome.state, outcome.detail)
        values["picture_artifact"] = outcome.picture_artifact
        async with self._database.writing() as connection:
            return await self._change(connection, _held(leased), values)

    async def put_back(self, leased: Leased, delay_seconds: float, *, counted: bool) -> None:
        """Let another attempt follow; one that was not `counted` does not use any up.

        Raises:
            LeaseLostError: somebody else has the job.
        """
        values = {
            "state": JobState.QUEUED.value,
            "not_before": time.time() + delay_seconds,
            "owner": None,
            "lease_until": None,
            "attempts": leased.attempts if counted else leased.attempts - 1,
        }
        async with self._database.writing() as connection:
            await self._change(connection, _held(leased), values)

    def _ending(self, state: JobState, detail: Job | None = None) -> dict[str, Any]:
        now = time.time()
        return {
            "state": state.value,
            "ended_at": now,
            "expires_at": now + self._limits.keep_seconds,
            "owner": None,
            "lease_until": None,
            "outcome": b"" if detail is None else detail.to_proto().SerializeToString(),
        }

    async def _change(self, connection: AsyncConnection, where: Any, values: dict[str, Any]) -> Job:
        """Change a job, and tell its new state."""
        row = await self._advance(connection, where, values, [])
        job = job_of(row)
        told = replace(job, options=None)  # updates hold no prompts
        change = JobUpdate(job.sequence, datetime.now(UTC), told)
        await _tell(connection, row.id, [change])
        if self._published:
            await keep(connection, row.tenant, row.traceparent, change)
        return job

    async def _advance(
        self,
        connection: AsyncConnection,
        where: Any,
        values: dict[str, Any],
        happened: Sequence[tuple[datetime, Event]],
    ) -> Row[Any]:
        """Take the next sequence numbers, one for each event, or one for a change."""
        count = len(happened) or 1
        changed = (
            update(jobs)
            .where(where)
            .values(sequence=jobs.c.sequence + count, **values)
            .returning(jobs)
        )
        row: Row[Any] | None = (await connection.execute(changed)).one_or_none()
        if row is None:
            raise LeaseLostError
        first = row.sequence - count + 1
        told = [
            JobUpdate(first + index, at, event=event) for index, (at, event) in enumerate(happened)
        ]
        await _tell(connection, row.id, told)
        return row


async def _tell(connection: AsyncConnection, job_id: str, told: Sequence[JobUpdate]) -> None:
    if told:
        rows = [
            {
                "job_id": job_id,
                "sequence": one.sequence,
                "body": one.to_proto().SerializeToString(),
            }
            for one in told
        ]
        await connection.execute(insert(updates), rows)


def _own(tenant: str, job_id: str) -> Any:
    return and_(jobs.c.id == job_id, jobs.c.tenant == tenant)


def _held(leased: Leased) -> Any:
    return and_(
        jobs.c.id == leased.id,
        jobs.c.fence == leased.fence,
        jobs.c.state == JobState.RUNNING.value,
    )


def _not_found(job_id: str) -> RequestError:
    return RequestError(f"there is no job {job_id[:64]!r}", reason=Reason.NOT_FOUND)
