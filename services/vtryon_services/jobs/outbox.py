"""Changes of jobs' states, kept until they are published; written where the change is written."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from vtryon.jobs import JobUpdate
from vtryon.outcomes import JobOutcome
from vtryon.v1 import job_pb2
from vtryon_services.jobs.database import Database
from vtryon_services.jobs.origin import Origin
from vtryon_services.jobs.tables import outbox, turns

_TURN = "outcomes"
_TURN_SECONDS = 5.0


async def keep(connection: AsyncConnection, tenant: str, origin: Origin, told: JobUpdate) -> None:
    """Keep a change, in the transaction that makes it."""
    body = told.to_proto().SerializeToString()
    row = {"tenant": tenant, **origin.columns, "body": body}
    await connection.execute(insert(outbox).values(**row))


class JobOutbox:
    """Gives outcomes to one owner at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, owner: str, published: Sequence[int], most: int) -> list[JobOutcome]:
        """Delete published outcomes, and return the oldest; none while another owner leases."""
        if most and not published and not await self.count():
            return []  # to look costs less than to write
        now = time.time()
        own = or_(turns.c.owner == owner, turns.c.until < now)
        turn = (
            update(turns)
            .where(turns.c.name == _TURN, own)
            .values(owner=owner, until=now + _TURN_SECONDS if most else 0.0)
        )
        async with self._database.writing() as connection:
            mine = (await connection.execute(turn)).rowcount
            if published:
                await connection.execute(delete(outbox).where(outbox.c.id.in_(published)))
            if not mine or not most:
                return []
            oldest = select(outbox).order_by(outbox.c.id).limit(most)
            rows = (await connection.execute(oldest)).all()
        return [
            JobOutcome(
                row.id,
                row.tenant,
                JobUpdate.from_proto(job_pb2.JobUpdate.FromString(row.body)),
                **Origin.of(row).columns,
            )
            for row in rows
        ]

    async def count(self) -> int:
        """Count unpublished outcomes."""
        async with self._database.reading() as connection:
            found = await connection.execute(select(func.count()).select_from(outbox))
            return int(found.scalar_one())
