"""The job store's database: SQLite in a file, or PostgreSQL.

A transaction is a synchronous function of a connection. SQLite runs it in one thread: passing each
statement to a thread takes longer than the statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from vtryon.errors import SettingsError
from vtryon_services.jobs.database.postgres import PostgresDatabase
from vtryon_services.jobs.database.sqlite import SqliteDatabase
from vtryon_services.jobs.database.transactions import ConflictError, Database

__all__ = ["ConflictError", "Database", "located", "open_database"]
_KINDS: dict[str, Callable[[str], Awaitable[Database]]] = {
    "sqlite": SqliteDatabase.open,
    "postgresql+asyncpg": PostgresDatabase.open,
}


async def open_database(url: str) -> Database:
    """Connect, and run the migrations.

    Args:
        url: sqlite:///PATH or postgresql+asyncpg://...

    Raises:
        SettingsError: the database can't be reached or used.
    """
    try:
        parts = make_url(url)
    except ArgumentError as error:
        raise SettingsError(f"the jobs' database can't be used: {error}") from None
    where = parts.render_as_string(hide_password=True)
    if parts.drivername not in _KINDS:
        raise SettingsError(
            f"the jobs' database {where} can't be used: it is none of "
            "sqlite:///PATH and postgresql+asyncpg://..."
        )
    try:
        return await _KINDS[parts.drivername](url)
    except (ModuleNotFoundError, OSError, SQLAlchemyError, sqlite3.Error) as error:
        cause = getattr(error, "orig", None) or error
        raise SettingsError(f"the jobs' database {where} can't be used: {cause}") from None


def located(url: str, folder: Path) -> str:
    """Return the URL with a relative path of SQLite resolved against the folder."""
    with suppress(ArgumentError):
        parts = make_url(url)
        if parts.get_backend_name() == "sqlite" and parts.database not in (None, ":memory:"):
            parts = parts.set(database=str(folder / parts.database))
            return parts.render_as_string(hide_password=False)
    return url
