"""The interface of the job store's database, and its errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from vtryon_services.storage.outage import StorageError

T = TypeVar("T")
_MIGRATIONS = Path(__file__).parents[1] / "migrations"
_THERE_ALREADY = {"SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY", "23505"}


class ConflictError(Exception):
    """A row with the same key exists."""


class Database(ABC):
    """Runs transactions; implemented by `SqliteDatabase` and `PostgresDatabase`."""

    @abstractmethod
    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run a read-only transaction; it does not block writers.

        Raises:
            StorageError: the database failed.
        """

    @abstractmethod
    async def write(self, work: Callable[[Connection], T], tenant: str = "") -> T:
        """Run a transaction; an error or a cancellation rolls it back.

        Args:
            work: the transaction; may run in another thread.
            tenant: the tenant that waits; waiting transactions are served round robin by tenant.

        Raises:
            ConflictError: a row with the same key exists.
            StorageError: the database failed.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""


@contextmanager
def named_failures() -> Iterator[None]:
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


def upgrade(connection: Connection) -> None:
    """Run the migrations."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
