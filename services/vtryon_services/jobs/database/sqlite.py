"""The job store in a SQLite file: one writer thread, several reader threads."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

from vtryon_services.jobs.database.transactions import Database, T, named_failures, upgrade
from vtryon_services.jobs.database.turns import Turns

_READERS = 4
_PRAGMAS = (
    "busy_timeout=30000",
    "synchronous=FULL",
    "foreign_keys=ON",
    "secure_delete=ON",
    "temp_store=MEMORY",
)
_PATIENCE = 50  # tenths of a second


class _LeftError(Exception):
    """The caller was cancelled, so its transaction is rolled back."""


class SqliteDatabase(Database):
    """One writer at a time, fair among tenants.

    SQLite itself lets a second writer sleep for up to 0.1 s between attempts.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turns = Turns()
        self._writer = ThreadPoolExecutor(1, "jobs-writer")
        self._readers = ThreadPoolExecutor(_READERS, "jobs-reader")

    @classmethod
    async def open(cls, url: URL) -> SqliteDatabase:
        """Create the file if it is missing, and bring its tables up to date."""
        engine = create_engine(
            url,
            hide_parameters=True,  # errors are logged, and never hold what callers said
            pool_size=1 + _READERS,
            max_overflow=0,
        )
        try:
            await asyncio.to_thread(_set_up, engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """See `Database`."""

        def transaction() -> T:
            with self._engine.connect() as connection:
                return work(connection.execution_options(vtryon_reading=True))

        with named_failures():
            return await asyncio.get_running_loop().run_in_executor(self._readers, transaction)

    async def write(self, work: Callable[[Connection], T], tenant: str = "") -> T:
        """See `Database`."""
        left = threading.Event()

        def transaction() -> T:
            with self._engine.begin() as connection:
                done = work(connection)
                if left.is_set():
                    raise _LeftError
                return done

        with named_failures():
            async with self._turns.of(tenant):
                writing = asyncio.get_running_loop().run_in_executor(self._writer, transaction)
                try:
                    return await asyncio.shield(writing)
                except asyncio.CancelledError:
                    left.set()
                    writing.add_done_callback(lambda done: done.exception())  # told to nobody
                    await asyncio.wait([writing])  # the next turn begins when this one is over
                    raise

    async def close(self) -> None:
        """See `Database`."""
        for threads in (self._writer, self._readers):
            await asyncio.to_thread(threads.shutdown)
        self._engine.dispose()


def _set_up(engine: Engine) -> None:
    _listen(engine)
    _write_ahead(engine.url.database or "")
    with engine.begin() as connection:
        upgrade(connection)


def _write_ahead(path: str) -> None:
    """Switch the file to write-ahead logging, so that readers and the writer don't block.

    SQLite does not wait for this lock if two processes start at once. A new file is readable by
    its owner only, as are the journals that SQLite creates for it.
    """
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


def _listen(engine: Engine) -> None:
    """Set up each connection: wait for other writers, and sync every commit to disk."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say ourselves when a transaction begins
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begins(connection: Connection) -> None:
        reading = connection.get_execution_options().get("vtryon_reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
