"""Changes of jobs: each uses the job's next sequence numbers, and stores an update for each.

Statements are built once at import: building one takes longer than SQLite needs to run it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, update

from vtryon.events import Event
from vtryon.jobs import Job, JobState, JobUpdate
from vtryon_services.jobs.origin import Origin
from vtryon_services.jobs.outbox import keep
from vtryon_services.jobs.records import Kept, kept_of
from vtryon_services.jobs.tables import jobs, updates

_OF_JOB = jobs.c.id == bindparam("of_job")
_ADVANCE = (
    update(jobs).where(_OF_JOB).values(sequence=jobs.c.sequence + bindparam("told")).returning(jobs)
)
_HELD = (jobs.c.fence == bindparam("of_fence"), jobs.c.state == JobState.RUNNING.value)
_ADVANCE_HELD = _ADVANCE.where(*_HELD)
_TELL = insert(updates)


class LeaseLostError(Exception):
    """The lease has passed to another runner; this runner's state is obsolete."""


class Changes:
    """Writes changes, each in the transaction of its connection.

    Args:
        keep_seconds: from a job's end until its pictures are erased.
        published: whether changes of state go to the outbox as well.
    """

    def __init__(self, keep_seconds: float, *, published: bool) -> None:
        self._keep_seconds = keep_seconds
        self._published = published

    def change(
        self,
        connection: Connection,
        job_id: str,
        values: dict[str, Any],
        *,
        fence: int | None = None,
    ) -> Kept:
        """Change a job's state, and tell it.

        Args:
            connection: of the transaction.
            job_id: the job.
            values: columns.
            fence: the number of the lease that the job must still be held by; None: by any.

        Raises:
            LeaseLostError: there is no such job.
        """
        row = self.advance(connection, job_id, values, [], fence=fence)
        kept = kept_of(row)
        told = replace(kept.job, options=None)  # updates hold no options
        change = JobUpdate(told.sequence, datetime.now(UTC), told)
        _tell(connection, row.id, [change])
        self.publish(connection, row, change)
        return kept

    def publish(self, connection: Connection, row: Row[Any], change: JobUpdate) -> None:
        """Add a change to the outbox, if bridges publish changes."""
        if self._published:
            keep(connection, row.tenant, Origin.of(row), change)

    def advance(
        self,
        connection: Connection,
        job_id: str,
        values: dict[str, Any],
        happened: Sequence[tuple[datetime, Event]],
        *,
        fence: int | None = None,
    ) -> Row[Any]:
        """Take the next sequence numbers, one for each event, or one for a change.

        Raises:
            LeaseLostError: there is no such job.
        """
        count = len(happened) or 1
        given = {**values, "of_job": job_id, "told": count}
        if fence is None:
            row = connection.execute(_ADVANCE, given).one_or_none()
        else:
            row = connection.execute(_ADVANCE_HELD, {**given, "of_fence": fence}).one_or_none()
        if row is None:
            raise LeaseLostError
        first = row.sequence - count + 1
        told = [
            JobUpdate(first + index, at, event=event) for index, (at, event) in enumerate(happened)
        ]
        _tell(connection, row.id, told)
        return row

    def ending(self, state: JobState, detail: Job | None = None) -> dict[str, Any]:
        """Return the columns of a job that ends; a cancelled one is erased at once."""
        now = time.time()
        values = {
            "state": state.value,
            "ended_at": now,
            "expires_at": now + self._keep_seconds,
            "owner": None,
            "lease_until": None,
            "outcome": b"" if detail is None else detail.to_proto().SerializeToString(),
        }
        return values | (FORGET if state is JobState.CANCELLED else {})


# The columns of a job whose folder is to be deleted.
FORGET: dict[str, Any] = {"erasing": True, "sealed": b""}


def _tell(connection: Connection, job_id: str, told: Sequence[JobUpdate]) -> None:
    if told:
        rows = [
            {
                "job_id": job_id,
                "sequence": one.sequence,
                "body": one.to_proto().SerializeToString(),
            }
            for one in told
        ]
        connection.execute(_TELL, rows)
