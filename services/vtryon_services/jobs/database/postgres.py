"""The job store in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import URL, Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from vtryon_services.jobs.database.transactions import Database, T, named_failures, upgrade

_POOL_SIZE = 16  # more wait: connections made and closed each time cost more than they do
_ONE_AT_A_TIME = 0x76747279  # an advisory lock of PostgreSQL's: "vtry"


class PostgresDatabase(Database):
    """Transactions run concurrently."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @classmethod
    async def open(cls, url: URL) -> PostgresDatabase:
        """Connect, and run the migrations under a lock: several replicas may start at once."""
        engine = create_async_engine(
            url,
            pool_pre_ping=True,  # the server may have gone away in between
            hide_parameters=True,  # errors are logged, and never hold what callers said
            pool_size=_POOL_SIZE,
            max_overflow=0,
        )
        try:
            async with engine.begin() as connection:
                lock = text("SELECT pg_advisory_xact_lock(:key)")
                await connection.execute(lock, {"key": _ONE_AT_A_TIME})
                await connection.run_sync(upgrade)
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """See `Database`."""
        with named_failures():
            async with self._engine.connect() as connection:
                return await connection.run_sync(work)

    async def write(self, work: Callable[[Connection], T], tenant: str = "") -> T:
        """See `Database`."""
        with named_failures():
            async with self._engine.begin() as connection:
                return await connection.run_sync(work)

    async def close(self) -> None:
        """See `Database`."""
        await self._engine.dispose()
