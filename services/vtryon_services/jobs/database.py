"""A connection to the job store's database: SQLite in a file, or PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
    nullcontext,
    suppress,
)
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from vtryon.errors import SettingsError
from vtryon_services.storage.outage import StorageError

_MIGRATIONS = Path(__file__).with_name("migrations")
# One more than that waits for one: made and closed each time, they cost more than they do.
_POOL: dict[str, Any] = {"pool_size": 16, "max_overflow": 0}
_PATIENCE = 50  # tenths of a second
_THERE_ALREADY = {"SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY", "23505"}
_ONE_AT_A_TIME = 0x76747279  # an advisory lock of PostgreSQL's: "vtry"


class ConflictError(Exception):
    """A row of the same key is there already."""


class Database:
    """Transactions, for reading and for writing."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # SQLite has one writer at a time, and lets others sleep much too long.
        alone = engine.dialect.name == "sqlite"
        self._turn: AbstractAsyncContextManager[Any] = asyncio.Lock() if alone else nullcontext()

    @classmethod
    async def open(cls, url: str) -> Database:
        """Connect, and bring the tables up to date.

        Raises:
            SettingsError: the database can't be reached or used.
        """
        try:
            # A server may have gone away in between; a file has not.
            pinged = not url.startswith("sqlite")
            engine = create_async_engine(
                url,
                pool_pre_ping=pinged,
                hide_parameters=True,  # errors are logged, and never hold what callers said
                **_POOL,
            )
        except (ArgumentError, ModuleNotFoundError) as error:
            raise SettingsError(f"the jobs' database can't be used: {error}") from error
        try:
            if engine.dialect.name == "sqlite":
                _set_up_sqlite(engine)
                await asyncio.to_thread(_write_ahead, engine.url.database or "")
            async with engine.begin() as connection:
                if engine.dialect.name == "postgresql":
                    lock = text("SELECT pg_advisory_xact_lock(:key)")
                    await connection.execute(lock, {"key": _ONE_AT_A_TIME})
                await connection.run_sync(_upgrade)
        except (OSError, SQLAlchemyError, sqlite3.Error) as error:
            await engine.dispose()
            where = engine.url.render_as_string(hide_password=True)
            cause = getattr(error, "orig", None) or error
            raise SettingsError(f"the jobs' database {where} can't be used: {cause}") from None
        return cls(engine)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Read, without keeping anybody from writing.

        Raises:
            StorageError: the database failed.
        """
        with _named_failures():
            async with self._engine.connect() as connection:
                await connection.execution_options(vtryon_reading=True)
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Read and write in one transaction; an error rolls it back.

        Raises:
            ConflictError: a row with the same key exists.
            StorageError: the database failed.
        """
        with _named_failures():
            async with self._turn, self._engine.begin() as connection:
                yield connection

    async def close(self) -> None:
        """Let go of connections."""
        await self._engine.dispose()


def located(url: str, folder: Path) -> str:
    """Give the URL of a database; a relative path of SQLite's is looked for in the folder."""
    with suppress(ArgumentError):
        parts = make_url(url)
        path = parts.database
        if parts.get_backend_name() == "sqlite" and path and path != ":memory:":
            parts = parts.set(database=str(folder / path))
            return parts.render_as_string(hide_password=False)
    return url


@contextmanager
def _named_failures() -> Iterator[None]:
    """Translate exceptions into StorageErrors, without statements and values."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        code = getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None)
        if isinstance(error, IntegrityError) and code in _THERE_ALREADY:
            raise ConflictError from None
        words = f"{type(cause).__name__} {code}" if code else type(cause).__name__
        raise StorageError(f"the jobs' database failed: {words}") from None


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _write_ahead(path: str) -> None:
    """Switch the file to write-ahead logging, so that readers and the writer don't block.

    SQLite does not wait for this lock if two processes start at once. A new file is readable by
    its owner only, as are the journals that SQLite creates for it.
    """
    if path and path != ":memory:":
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    for patience in range(_PATIENCE, -1, -1):
        with closing(sqlite3.connect(path)) as connection:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if not patience or "locked" not in str(error):
                    raise
        time.sleep(0.1)


def _set_up_sqlite(engine: AsyncEngine) -> None:
    """Wait for other writers instead of failing, and lose nothing that was committed."""

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say ourselves when a transaction begins
        cursor = connection.cursor()
        for pragma in (
            "busy_timeout=30000",
            "synchronous=FULL",
            "foreign_keys=ON",
            "secure_delete=ON",
            "temp_store=MEMORY",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begins(connection: Connection) -> None:
        reading = connection.get_execution_options().get("vtryon_reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
