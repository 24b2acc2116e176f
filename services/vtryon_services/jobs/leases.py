"""Leases: a runner holds a job for a limited time, and every write verifies its lease."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, func, or_, select, update

from vtryon.errors import Reason
from vtryon.jobs import Job, JobState
from vtryon_services.jobs.changes import Changes, LeaseLostError
from vtryon_services.jobs.database import Database
from vtryon_services.jobs.records import (
    EventBatch,
    Kept,
    Leased,
    Outcome,
    Resume,
    failed,
    leased_of,
    out_of_time,
)
from vtryon_services.jobs.tables import jobs

_RUNNING = jobs.c.state == JobState.RUNNING.value
_OWN = jobs.c.owner == bindparam("of_owner")


def _running_of_tenants(*where: Any) -> Any:
    counted = select(jobs.c.tenant, func.count().label("jobs")).where(_RUNNING, *where)
    return counted.group_by(jobs.c.tenant).subquery()


# Of each tenant that has any: its jobs that run, at all runners and at the one that asks.
_everywhere, _here = _running_of_tenants(), _running_of_tenants(_OWN)
_NOW = bindparam("now", type_=jobs.c.not_before.type)
_FREE = and_(
    or_(
        and_(jobs.c.state == JobState.QUEUED.value, jobs.c.not_before <= _NOW),
        and_(_RUNNING, jobs.c.lease_until < _NOW),
    ),
    func.coalesce(_here.c.jobs, 0) < bindparam("most_of_tenant"),
    jobs.c.tenant.not_in(bindparam("paused", expanding=True)),
)
_ANY_FREE = (
    select(jobs.c.id).outerjoin(_here, _here.c.tenant == jobs.c.tenant).where(_FREE).limit(1)
)
# The free job that comes first; other runners are kept from it.
_FIRST_FREE = (
    select(jobs)
    .outerjoin(_here, _here.c.tenant == jobs.c.tenant)
    .outerjoin(_everywhere, _everywhere.c.tenant == jobs.c.tenant)
    .where(_FREE)
    .order_by(func.coalesce(_everywhere.c.jobs, 0), jobs.c.created_at)
    .limit(1)
    .with_for_update(of=jobs, skip_locked=True)
)
_CANCELLED = select(jobs.c.id).where(_OWN, jobs.c.cancel_requested.is_(True))
_ANY_NUMBER = 2**31 - 1


class Leases:
    """The runners' side of the store."""

    def __init__(self, database: Database, changes: Changes, max_attempts: int) -> None:
        self._database = database
        self._changes = changes
        self._max_attempts = max_attempts

    async def lease(
        self,
        owner: str,
        seconds: float,
        most_of_tenant: int | None = None,
        paused: Sequence[str] = (),
    ) -> Leased | None:
        """Lease the next job: the oldest of the tenant with the fewest running; None without jobs.

        A job whose lease has expired is reassigned.

        Args:
            owner: the runner.
            seconds: duration of the lease.
            most_of_tenant: maximum jobs of one tenant that the runner holds; None: any number.
            paused: tenants whose jobs are not leased now.
        """
        now = time.time()
        most = _ANY_NUMBER if most_of_tenant is None else most_of_tenant
        asked = {"now": now, "of_owner": owner, "most_of_tenant": most, "paused": paused}
        if await self._database.read(lambda db: db.execute(_ANY_FREE, asked).first()) is None:
            return None

        def transaction(connection: Connection) -> Leased | None:
            row = connection.execute(_FIRST_FREE, asked).one_or_none()
            if row is None:
                return None
            if (outcome := self._not_to_be_run(row, now)) is not None:
                state = outcome.state or JobState.FAILED
                ending = self._changes.ending(state, outcome)
                self._changes.change(connection, row.id, ending)
                return None
            taken = {
                "state": JobState.RUNNING.value,
                "owner": owner,
                "lease_until": now + seconds,
                "fence": row.fence + 1,
                "attempts": row.attempts + 1,
                "started_at": row.started_at or now,
            }
            self._changes.change(connection, row.id, taken)
            return leased_of(row)

        return await self._database.write(transaction)

    def _not_to_be_run(self, row: Row[Any], now: float) -> Job | None:
        """Say how a job ends that was cancelled, came too late, or ends every runner."""
        if row.cancel_requested:
            return Job(row.id, state=JobState.CANCELLED)
        if row.deadline < now:
            return out_of_time(row.id)
        if row.attempts >= self._max_attempts:
            words = f"{row.attempts} attempts ended without a word, their runners with them"
            return failed(row.id, Reason.STAGE_FAILED, words, {})
        return None

    async def renew(self, owner: str, seconds: float) -> None:
        """Keep all jobs of a runner."""
        later = (
            update(jobs)
            .where(jobs.c.owner == owner, jobs.c.state == JobState.RUNNING.value)
            .values(lease_until=time.time() + seconds)
        )
        await self._database.write(lambda db: db.execute(later))

    async def cancelled(self, owner: str) -> list[str]:
        """Give the runner's jobs that are to be cancelled."""
        mine = {"of_owner": owner}
        found = await self._database.read(lambda db: db.execute(_CANCELLED, mine).scalars().all())
        return list(found)

    async def record(self, leased: Leased, progress: EventBatch) -> None:
        """Store events of a try-on.

        Raises:
            LeaseLostError: the lease has passed to another runner.
        """
        await self._database.write(lambda db: self._record(db, leased, progress), leased.tenant)

    def _record(self, connection: Connection, leased: Leased, progress: EventBatch) -> None:
        values, happened = progress.values, progress.happened
        self._changes.advance(connection, leased.id, values, happened, fence=leased.fence)

    async def keep_resume(self, leased: Leased, resume: Resume) -> None:
        """Store a resume point for another attempt.

        Raises:
            LeaseLostError: the lease has passed to another runner.
        """
        point = resume.point
        shape = {
            "shape": list(resume.shape),
            "model_digest": point.model_digest,
            "encoders_digest": point.encoders_digest,
        }
        columns = {"resume_artifact": resume.artifact, "resume_shape": shape}
        changed = update(jobs).where(_held(leased)).values(resume_step=point.step, **columns)
        if not await self._database.write(lambda db: db.execute(changed).rowcount, leased.tenant):
            raise LeaseLostError

    async def finish(self, leased: Leased, outcome: Outcome, last: EventBatch) -> Kept:
        """End a job, and store its last events in the same transaction.

        Raises:
            LeaseLostError: the lease has passed to another runner.
        """
        values = self._changes.ending(outcome.state, outcome.detail)
        values["picture_artifact"] = outcome.picture_artifact

        def transaction(connection: Connection) -> Kept:
            if last.happened:
                self._record(connection, leased, last)
            return self._changes.change(connection, leased.id, values, fence=leased.fence)

        return await self._database.write(transaction, leased.tenant)

    async def put_back(self, leased: Leased, delay_seconds: float, *, counted: bool) -> None:
        """Queue a job for another attempt; if not `counted`, this one does not count.

        Raises:
            LeaseLostError: the lease has passed to another runner.
        """
        values = {
            "state": JobState.QUEUED.value,
            "not_before": time.time() + delay_seconds,
            "owner": None,
            "lease_until": None,
            "attempts": leased.attempts if counted else leased.attempts - 1,
        }
        await self._database.write(
            lambda db: self._changes.change(db, leased.id, values, fence=leased.fence),
            leased.tenant,
        )


def _held(leased: Leased) -> Any:
    return and_(
        jobs.c.id == leased.id,
        jobs.c.fence == leased.fence,
        jobs.c.state == JobState.RUNNING.value,
    )
