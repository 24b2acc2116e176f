"""The job store, in SQL."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    delete,
    func,
    insert,
    select,
    tuple_,
    update,
)

from vtryon.errors import OverloadedError, Reason, RequestError
from vtryon.jobs import JobState
from vtryon_services.jobs.changes import FORGET, Changes
from vtryon_services.jobs.database import ConflictError, Database
from vtryon_services.jobs.erasures import Erasures
from vtryon_services.jobs.leases import Leases
from vtryon_services.jobs.outbox import JobOutbox
from vtryon_services.jobs.records import Kept, NewJob, is_job_id, kept_of, read_token, token_of
from vtryon_services.jobs.tables import jobs, leftovers, updates
from vtryon_services.storage.outage import StorageError

_WAIT_FOR_ROOM_SECONDS = 5.0
_ROWS_AT_ONCE = 50
UPDATES_AT_ONCE = 100

_TENANT: Any = bindparam("of_tenant")
_OWN = select(jobs).where(jobs.c.id == bindparam("of_job"), jobs.c.tenant == _TENANT)
_OF_REQUEST = select(jobs).where(
    jobs.c.tenant == _TENANT, jobs.c.request_id == bindparam("of_request")
)
_QUEUED = jobs.c.state == JobState.QUEUED.value
_WAITING = select(func.count()).where(_QUEUED)
_WAITING_OWN = _WAITING.where(jobs.c.tenant == _TENANT)
_OTHER_TENANTS = select(func.count(jobs.c.tenant.distinct())).where(
    _QUEUED, jobs.c.tenant != _TENANT
)
_INSERT = insert(jobs)
# From now on the job names its folder.
_NAMED = delete(leftovers).where(leftovers.c.folder == bindparam("of_folder"))
_UPDATES = (
    select(updates.c.body)
    .where(updates.c.job_id == bindparam("of_job"), updates.c.sequence >= bindparam("first"))
    .order_by(updates.c.sequence)
    .limit(UPDATES_AT_ONCE)
)


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How many jobs may wait, how often each is tried, how long its pictures are kept.

    Attributes:
        leftover_seconds: after which a folder is deleted that no job names.
    """

    max_waiting: int
    max_attempts: int
    keep_seconds: float
    leftover_seconds: float = 3600.0


class JobStore:
    """The callers' side; `leases` is the runners', `erasures` the sweeper's, `outbox` the bridges'.

    Every change is one transaction, and leaves an update with the next sequence number.

    Args:
        published: whether changes of state go to the outbox as well.
    """

    def __init__(self, database: Database, limits: StoreLimits, *, published: bool = False) -> None:
        self._database = database
        self._max_waiting = limits.max_waiting
        self._changes = Changes(limits.keep_seconds, published=published)
        self.leases = Leases(database, self._changes, limits.max_attempts)
        self.erasures = Erasures(database, self._changes, limits.leftover_seconds)
        self.outbox = JobOutbox(database)

    async def create(self, new: NewJob) -> tuple[Kept, bool]:
        """Write a job down, or find the one of the same request id; true where it is new.

        Raises:
            RequestError: ALREADY_EXISTS, the id stands for something else.
            OverloadedError: too many wait.
        """
        for _ in range(2):
            with suppress(ConflictError):  # the same id at the same moment: now it is there
                return await self._database.write(lambda db: self._create(db, new), new.tenant)
        raise StorageError("the jobs' database has a job of this request id, and does not give it")

    def _create(self, connection: Connection, new: NewJob) -> tuple[Kept, bool]:
        if (found := self._by_request(connection, new)) is not None:
            return found, False
        self._check_room(connection, new.tenant)
        return self._insert(connection, new), True

    def _by_request(self, connection: Connection, new: NewJob) -> Kept | None:
        same = {"of_tenant": new.tenant, "of_request": new.request_id}
        row = connection.execute(_OF_REQUEST, same).one_or_none()
        if row is None:
            return None
        if row.digest != new.digest:
            raise RequestError(
                "this request id stands for another request already",
                reason=Reason.ALREADY_EXISTS,
                metadata={"job_id": row.id},
            )
        return kept_of(row)

    def _check_room(self, connection: Connection, tenant: str) -> None:
        """Reject a job where the queue is full and its tenant has an equal share of it."""
        if connection.execute(_WAITING).scalar_one() < self._max_waiting:
            return
        of_tenant = {"of_tenant": tenant}
        own = connection.execute(_WAITING_OWN, of_tenant).scalar_one()
        tenants = 1 + connection.execute(_OTHER_TENANTS, of_tenant).scalar_one()
        if own >= self._max_waiting / tenants:
            raise OverloadedError(
                f"the queue has {self._max_waiting} jobs, which is its limit, and {own} of them "
                f"are yours: send the job again later",
                retry_after_seconds=_WAIT_FOR_ROOM_SECONDS,
            )

    def _insert(self, connection: Connection, new: NewJob) -> Kept:
        now = time.time()
        row = dict(
            id=new.id,
            tenant=new.tenant,
            request_id=new.request_id,
            digest=new.digest,
            state=JobState.QUEUED.value,
            options=new.options.to_proto().SerializeToString(),
            sealed=new.sealed,
            pictures=[[kind.value, artifact] for kind, artifact in new.pictures],
            **new.origin.columns,
            labels=dict(new.labels),
            created_at=now,
            not_before=now,
            deadline=now + new.timeout_seconds,
        )
        connection.execute(_INSERT, row)
        connection.execute(_NAMED, {"of_folder": new.id})
        return self._changes.change(connection, new.id, {})

    async def get(self, tenant: str, job_id: str) -> Kept:
        """Give a job of a tenant.

        Raises:
            RequestError: NOT_FOUND.
        """
        return kept_of(await self._row(tenant, job_id))

    async def picture(self, tenant: str, job_id: str) -> tuple[Kept, str]:
        """Return a job and the artifact of its picture.

        Raises:
            RequestError: NOT_FOUND, also if there is no picture.
        """
        row = await self._row(tenant, job_id)
        if row.picture_artifact is None or row.erased or row.erasing:
            erased = row.state == JobState.SUCCEEDED
            state = "its pictures were erased" if erased else f"it is {row.state}"
            raise RequestError(f"job {job_id} has no picture: {state}", reason=Reason.NOT_FOUND)
        return kept_of(row), str(row.picture_artifact)

    async def _row(self, tenant: str, job_id: str) -> Row[Any]:
        own = _own(tenant, job_id)
        row = await self._database.read(lambda db: db.execute(_OWN, own).one_or_none())
        if row is None:
            raise _not_found(job_id)
        return row

    async def page(
        self, tenant: str, states: Sequence[JobState], size: int, token: str, max_bytes: int
    ) -> tuple[list[Kept], str]:
        """Return a tenant's jobs, newest first, and the token of the next page.

        A page ends after `size` jobs, or after the job with which it reaches `max_bytes`.

        Raises:
            RequestError: the token is invalid.
        """
        found: list[Kept] = []
        taken_bytes, following = 0, token
        while len(found) < size and taken_bytes < max_bytes:
            most = min(size - len(found), _ROWS_AT_ONCE)
            rows = await self._newest(tenant, states, following, most + 1)
            for row in rows[:most]:
                kept = kept_of(row)
                taken_bytes += kept.message.ByteSize() + len(kept.sealed)
                if found and taken_bytes > max_bytes:
                    return found, following
                found.append(kept)
                following = token_of(row)
            if len(rows) <= most:
                return found, ""
        return found, following

    async def _newest(
        self, tenant: str, states: Sequence[JobState], token: str, most: int
    ) -> Sequence[Row[Any]]:
        wanted = select(jobs).where(jobs.c.tenant == tenant)
        if states:
            wanted = wanted.where(jobs.c.state.in_([state.value for state in states]))
        if token:
            wanted = wanted.where(tuple_(jobs.c.created_at, jobs.c.id) < read_token(token))
        wanted = wanted.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(most)
        return await self._database.read(lambda db: db.execute(wanted).all())

    async def cancel(self, tenant: str, job_id: str) -> Kept:
        """End a job that waits; ask the runner of one that runs.

        Raises:
            RequestError: NOT_FOUND.
        """
        return await self._database.write(lambda db: self._cancel(db, tenant, job_id), tenant)

    async def erase(self, tenant: str, job_id: str) -> Kept:
        """Cancel a job, and mark it to be erased; of one that runs, as soon as it has ended.

        Raises:
            RequestError: NOT_FOUND.
        """

        def transaction(connection: Connection) -> Kept:
            kept = self._cancel(connection, tenant, job_id)
            if kept.message.erased or kept.message.erasing:
                return kept
            marked = update(jobs).where(jobs.c.id == job_id).values(**FORGET).returning(jobs)
            return kept_of(connection.execute(marked).one())

        return await self._database.write(transaction, tenant)

    def _cancel(self, connection: Connection, tenant: str, job_id: str) -> Kept:
        row = connection.execute(_OWN, _own(tenant, job_id)).one_or_none()
        if row is None:
            raise _not_found(job_id)
        if row.state == JobState.QUEUED:
            ending = self._changes.ending(JobState.CANCELLED)
            return self._changes.change(connection, job_id, ending)
        if row.state == JobState.RUNNING:
            asked = update(jobs).where(jobs.c.id == job_id).values(cancel_requested=True)
            connection.execute(asked)
        return kept_of(row)

    async def counts(self) -> dict[JobState, int]:
        """Count the jobs that have not ended, of all tenants."""
        open_states = [JobState.QUEUED, JobState.RUNNING]
        wanted = (
            select(jobs.c.state, func.count())
            .where(jobs.c.state.in_([state.value for state in open_states]))
            .group_by(jobs.c.state)
        )
        rows = await self._database.read(lambda db: db.execute(wanted).all())
        found = {row[0]: row[1] for row in rows}
        return {state: found.get(state.value, 0) for state in open_states}

    async def updates_of(self, job_id: str, first: int) -> Sequence[bytes]:
        """Give a job's updates from a sequence number on: vtryon.v1.JobUpdate, as it is kept."""
        asked = {"of_job": job_id, "first": first}
        return await self._database.read(lambda db: db.execute(_UPDATES, asked).scalars().all())


def _own(tenant: str, job_id: str) -> dict[str, str]:
    if not is_job_id(job_id):
        raise _not_found(job_id)
    return {"of_job": job_id, "of_tenant": tenant}


def _not_found(job_id: str) -> RequestError:
    return RequestError(f"there is no job {job_id[:64]!r}", reason=Reason.NOT_FOUND)
