"""Failures of object storage and database: one error class, and one way to log."""

from __future__ import annotations

import time
from typing import Any

import structlog

from vtryon.errors import UnavailableError

_RETRY_AFTER_SECONDS = 2.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 5.0
_BETWEEN_LOGS_SECONDS = 60.0


class StorageError(UnavailableError):
    """A database or an artifact store failed; the same request may succeed later.

    Attributes:
        retry_after_seconds: when it may; goes to the caller as RetryInfo.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.retry_after_seconds = _RETRY_AFTER_SECONDS


class Outage:
    """Counts consecutive failures of a background loop: growing pauses, one log line a minute.

    Args:
        log: the logger.
        what: the event to log, such as "leases could not be renewed".
    """

    def __init__(self, log: Any, what: str) -> None:
        self._log: structlog.stdlib.BoundLogger = log
        self._what = what
        self._failures = 0
        self._logged_at = 0.0

    def failed(self, error: Exception) -> float:
        """Count a failure, and give the seconds to wait before the next attempt.

        An error that is not ours is logged with its traceback, since it is a defect.
        """
        self._failures += 1
        if self._failures == 1 or time.monotonic() - self._logged_at > _BETWEEN_LOGS_SECONDS:
            self._logged_at = time.monotonic()
            unexpected = not isinstance(error, StorageError)
            words = {} if unexpected else {"cause": str(error)}
            self._log.error(self._what, failures=self._failures, exc_info=unexpected, **words)
        pause: float = _FIRST_PAUSE_SECONDS * 2 ** min(self._failures - 1, 10)
        return min(pause, _LONGEST_PAUSE_SECONDS)

    def over(self) -> None:
        """Note a success, and log it if there were failures before."""
        if self._failures:
            self._log.info("storage is available again", failures=self._failures)
        self._failures = 0
