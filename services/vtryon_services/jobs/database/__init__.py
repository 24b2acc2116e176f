"""The job store's database: SQLite in a file, or PostgreSQL.

A transaction is a synchronous function of a connection. SQLite runs it in one thread: passing each
statement to a thread takes longer than the statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from vtryon.errors import SettingsError
from vtryon_services.jobs.database.postgres import PostgresDatabase
from vtryon_services.jobs.database.sqlite import SqliteDatabase
from vtryon_services.jobs.database.transactions import ConflictError, Database

__all__ = ["ConflictError", "Database", "open_database", "read_url"]
_HERE = Path()
_KINDS: dict[str, Callable[[URL], Awaitable[Database]]] = {
    "sqlite": SqliteDatabase.open,
    "postgresql+asyncpg": PostgresDatabase.open,
}


async def open_database(url: str, folder: Path = _HERE) -> Database:
    """Connect, and run the migrations.

    Args:
        url: sqlite:///PATH or postgresql+asyncpg://...
        folder: base of a relative PATH.

    Raises:
        SettingsError: the database can't be reached or used.
    """
    parts = read_url(url, folder)
    try:
        return await _KINDS[parts.drivername](parts)
    except (ModuleNotFoundError, OSError, SQLAlchemyError, sqlite3.Error) as error:
        raise _unusable(parts, str(getattr(error, "orig", None) or error)) from None


def read_url(url: str, folder: Path = _HERE) -> URL:
    """Parse the URL of a database, and resolve its path.

    Raises:
        SettingsError: it is malformed, of another kind or driver, or without a file.
    """
    try:
        parts = make_url(url)
    except ArgumentError as error:
        raise SettingsError(f"the jobs' database can't be used: {error}") from None
    if parts.drivername not in _KINDS:
        raise _unusable(parts, "it is none of sqlite:///PATH and postgresql+asyncpg://...")
    if parts.drivername != "sqlite":
        return parts
    if parts.database in (None, "", ":memory:"):
        raise _unusable(parts, "jobs in memory would be lost; name a file: sqlite:///PATH")
    return parts.set(database=str(folder / str(parts.database)))


def _unusable(parts: URL, cause: str) -> SettingsError:
    where = parts.render_as_string(hide_password=True)
    return SettingsError(f"the jobs' database {where} can't be used: {cause}")
