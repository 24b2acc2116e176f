"""Pending deletions from the artifact store, in SQL; a name is deleted after its bytes.

A job to be erased is marked first (`erasing`), then its folder is deleted, and only then is it
`erased`. If a process ends in between, the mark remains, and the next sweep continues.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import Connection, and_, delete, insert, or_, select, update

from vtryon.jobs import JobState, JobUpdate
from vtryon.v1 import pipeline_pb2
from vtryon_services.jobs.changes import FORGET, Changes
from vtryon_services.jobs.database import Database
from vtryon_services.jobs.records import kept_of, out_of_time
from vtryon_services.jobs.tables import jobs, leftovers

_ENDED = [state.value for state in JobState if state.ended]
_MOST = 100
_EXPECT = insert(leftovers)


class Erasures:
    """The sweeper's side of the store.

    Args:
        leftover_seconds: after which a folder is deleted that no job names.
    """

    def __init__(self, database: Database, changes: Changes, leftover_seconds: float) -> None:
        self._database = database
        self._changes = changes
        self._leftover_seconds = leftover_seconds

    async def expect(self, folder: str, tenant: str) -> None:
        """Note a folder before it is written to: it is deleted unless a job names it in time."""
        row = {"folder": folder, "due": time.time() + self._leftover_seconds}
        await self._database.write(lambda db: db.execute(_EXPECT, row), tenant)

    async def expire(self) -> None:
        """Mark jobs past their retention, and fail those past their deadline."""
        now = time.time()
        late = and_(jobs.c.state == JobState.QUEUED.value, jobs.c.deadline < now)
        over = and_(jobs.c.expires_at < now, jobs.c.erased.is_(False), jobs.c.erasing.is_(False))
        wanted = select(jobs.c.id).where(or_(late, over)).limit(1)
        if await self._database.read(lambda db: db.execute(wanted).first()) is None:
            return

        def transaction(connection: Connection) -> None:
            for row in connection.execute(select(jobs).where(late)).all():
                ending = self._changes.ending(JobState.FAILED, out_of_time(row.id))
                self._changes.change(connection, row.id, ending)
            connection.execute(update(jobs).where(over).values(**FORGET))

        await self._database.write(transaction)

    async def due(self, behind: str) -> Sequence[tuple[str, list[str]]]:
        """Return ended jobs that are to be erased, with their folders, by id after a given one."""
        wanted = (
            select(jobs.c.id, jobs.c.pictures)
            .where(jobs.c.erasing.is_(True), jobs.c.state.in_(_ENDED), jobs.c.id > behind)
            .order_by(jobs.c.id)
            .limit(_MOST)
        )
        rows = await self._database.read(lambda db: db.execute(wanted).all())
        return [(row.id, _folders(row.id, row.pictures)) for row in rows]

    async def folders_of(self, job_id: str) -> list[str] | None:
        """Give the folders of a job that is to be erased and has ended; None for any other."""
        wanted = select(jobs.c.pictures).where(
            jobs.c.id == job_id, jobs.c.erasing.is_(True), jobs.c.state.in_(_ENDED)
        )
        row = await self._database.read(lambda db: db.execute(wanted).one_or_none())
        return None if row is None else _folders(job_id, row.pictures)

    async def confirm(self, job_id: str) -> None:
        """Note that the folders of a job are gone."""
        mine = and_(jobs.c.id == job_id, jobs.c.erasing.is_(True))

        def transaction(connection: Connection) -> None:
            found = connection.execute(select(jobs).where(mine).with_for_update())
            if (row := found.one_or_none()) is None:
                return
            options = pipeline_pb2.TryOnOptions.FromString(row.options)
            for name in ("prompt", "negative_prompt"):  # of jobs made before prompts were sealed
                options.ClearField(name)
            gone = {
                "erasing": False,
                "erased": True,
                "options": options.SerializeToString(),
                "pictures": [],
                "baggage": "",
                "picture_artifact": None,
                "resume_artifact": None,
            }
            connection.execute(update(jobs).where(mine).values(**gone))
            # A runner that lost the job may still write, so the folder is deleted once more.
            connection.execute(delete(leftovers).where(leftovers.c.folder == job_id))
            again = {"folder": job_id, "due": time.time() + self._leftover_seconds}
            connection.execute(insert(leftovers).values(**again))
            told = replace(kept_of(row).job, options=None, erasing=False, erased=True)
            change = JobUpdate(row.sequence, datetime.now(UTC), told)
            self._changes.publish(connection, row, change)

        await self._database.write(transaction)

    async def leftover(self) -> Sequence[str]:
        """Give folders that are due to be deleted."""
        wanted = select(leftovers.c.folder).where(leftovers.c.due < time.time()).limit(_MOST)
        return await self._database.read(lambda db: db.execute(wanted).scalars().all())

    async def postpone(self, folder: str, seconds: float) -> None:
        """Change when a folder is due."""
        later = update(leftovers).where(leftovers.c.folder == folder)
        later = later.values(due=time.time() + seconds)
        await self._database.write(lambda db: db.execute(later))

    async def forget(self, folder: str) -> None:
        """Note that a folder is gone."""
        gone = delete(leftovers).where(leftovers.c.folder == folder)
        await self._database.write(lambda db: db.execute(gone))


def _folders(job_id: str, pictures: Sequence[tuple[str, str]]) -> list[str]:
    return sorted({job_id, *(name.partition("/")[0] for _, name in pictures)})
