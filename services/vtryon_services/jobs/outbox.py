"""Changes of jobs' states, kept until they are published; written where the change is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, or_, select, update

from vtryon.jobs import JobUpdate
from vtryon.jobs.outbox import JobOutcome
from vtryon.v1 import job_pb2
from vtryon_services.jobs.database import Database
from vtryon_services.jobs.origin import Origin
from vtryon_services.jobs.tables import outbox, turns

_TURN = "outcomes"
_TURN_SECONDS = 5.0
_KEEP = insert(outbox)
_COUNT = select(func.count()).select_from(outbox)


def keep(connection: Connection, tenant: str, origin: Origin, told: JobUpdate) -> None:
    """Keep a change, in the transaction that makes it."""
    body = told.to_proto().SerializeToString()
    connection.execute(_KEEP, {"tenant": tenant, **origin.columns, "body": body})


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

        def transaction(connection: Connection) -> Sequence[Row[Any]]:
            mine = connection.execute(turn).rowcount
            if published:
                connection.execute(delete(outbox).where(outbox.c.id.in_(published)))
            if not mine or not most:
                return []
            return connection.execute(select(outbox).order_by(outbox.c.id).limit(most)).all()

        return [
            JobOutcome(
                row.id,
                row.tenant,
                JobUpdate.from_proto(job_pb2.JobUpdate.FromString(row.body)),
                **Origin.of(row).columns,
            )
            for row in await self._database.write(transaction)
        ]

    async def count(self) -> int:
        """Count unpublished outcomes."""
        return await self._database.read(lambda db: int(db.execute(_COUNT).scalar_one()))
