"""The rate at which jobs start, per tenant."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf

_SHARED_SECONDS = 10.0


class StartRate:
    """Limits the starts of a tenant while other tenants' jobs start in this process as well.

    A job costs the process time of its event loop however short it is, so that a backlog of one
    tenant would slow the jobs of all. A tenant that is alone is not limited.

    Args:
        per_second: jobs of one tenant.
        clock: in seconds.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1 / per_second
        self._shared = max(_SHARED_SECONDS, self._interval)
        self._clock = clock
        self._started: dict[str, float] = {}  # the last start of each tenant

    def started(self, tenant: str) -> None:
        """Count a start."""
        self._started = {**self._recent(), tenant: self._clock()}

    def paused(self) -> tuple[Sequence[str], float]:
        """Return the tenants that may not start a job yet, and the seconds until the first may."""
        recent, now = self._recent(), self._clock()
        if len(recent) < 2:
            return (), inf
        waits = {one: at + self._interval - now for one, at in recent.items()}
        paused = {one: seconds for one, seconds in waits.items() if seconds > 0}
        return tuple(paused), min(paused.values(), default=inf)

    def _recent(self) -> dict[str, float]:
        """Return the tenants that started a job lately, and when they did."""
        since = self._clock() - self._shared
        return {one: at for one, at in self._started.items() if at > since}
