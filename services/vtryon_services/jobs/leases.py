"""Leases: a runner holds a job for a limited time, and every write verifies its lease."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, func, or_, select, update

from vtryon.errors import Reason
from vtryon.events import Event
from vtryon.jobs import Job, JobState
from vtryon_services.jobs.changes import Changes, LeaseLostError
from vtryon_services.jobs.database import Database
from vtryon_services.jobs.records import (
    Kept,
    Leased,
    Outcome,
    Resume,
    failed,
    leased_of,
    out_of_time,
)
from vtryon_services.jobs.tables import jobs


class Leases:
    """The runners' side of the store."""

    def __init__(self, database: Database, changes: Changes, max_attempts: int) -> None:
        self._database = database
        self._changes = changes
        self._max_attempts = max_attempts

    async def lease(
        self, owner: str, seconds: float, most_of_tenant: int | None = None
    ) -> Leased | None:
        """Lease the next job: the oldest of the tenant with the fewest running; None without jobs.

        A job whose lease has expired is reassigned.

        Args:
            owner: the runner.
            seconds: duration of the lease.
            most_of_tenant: maximum jobs of one tenant that the runner holds; None: any number.
        """
        now = time.time()
        free = or_(
            and_(jobs.c.state == JobState.QUEUED.value, jobs.c.not_before <= now),
            and_(jobs.c.state == JobState.RUNNING.value, jobs.c.lease_until < now),
        )
        if most_of_tenant is not None:
            free = and_(free, _running_of_tenant(owner) < most_of_tenant)
        async with self._database.reading() as connection:
            if (await connection.execute(select(jobs.c.id).where(free).limit(1))).first() is None:
                return None
        async with self._database.writing() as connection:
            row = (await connection.execute(_first(free))).one_or_none()
            if row is None:
                return None
            if (outcome := self._not_to_be_run(row, now)) is not None:
                state = outcome.state or JobState.FAILED
                ending = self._changes.ending(state, outcome)
                await self._changes.change(connection, jobs.c.id == row.id, ending)
                return None
            taken = {
                "state": JobState.RUNNING.value,
                "owner": owner,
                "lease_until": now + seconds,
                "fence": row.fence + 1,
                "attempts": row.attempts + 1,
                "started_at": row.started_at or now,
            }
            await self._changes.change(connection, jobs.c.id == row.id, taken)
        return leased_of(row)

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
        """Store events of a try-on.

        Raises:
            LeaseLostError: the lease has passed to another runner.
        """
        async with self._database.writing() as connection:
            values = {"step": step, "steps": steps} if steps else {}
            await self._changes.advance(connection, _held(leased), values, happened)

    async def keep_resume(self, leased: Leased, resume: Resume) -> None:
        """Store a resume point for another attempt.

        Raises:
            LeaseLostError: the lease has passed to another runner.
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

    async def finish(self, leased: Leased, outcome: Outcome) -> Kept:
        """End a job.

        Raises:
            LeaseLostError: the lease has passed to another runner.
        """
        values = self._changes.ending(outcome.state, outcome.detail)
        values["picture_artifact"] = outcome.picture_artifact
        async with self._database.writing() as connection:
            return await self._changes.change(connection, _held(leased), values)

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
        async with self._database.writing() as connection:
            await self._changes.change(connection, _held(leased), values)


def _first(free: Any) -> Any:
    """Select the free job that comes first, and keep other runners from it."""
    return (
        select(jobs)
        .where(free)
        .order_by(_running_of_tenant(), jobs.c.created_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )


def _running_of_tenant(owner: str | None = None) -> Any:
    """Count the running jobs of a job's tenant: at all runners, or at one."""
    running = jobs.alias("running")
    count = select(func.count()).where(
        running.c.tenant == jobs.c.tenant, running.c.state == JobState.RUNNING.value
    )
    return (count if owner is None else count.where(running.c.owner == owner)).scalar_subquery()


def _held(leased: Leased) -> Any:
    return and_(
        jobs.c.id == leased.id,
        jobs.c.fence == leased.fence,
        jobs.c.state == JobState.RUNNING.value,
    )
