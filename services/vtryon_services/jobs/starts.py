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
        self._clock = clock
        self._started: dict[str, float] = {}  # the last start of each tenant

    def started(self, tenant: str) -> None:
        """Count a start."""
        now = self._clock()
        self._started = {
            one: at for one, at in self._started.items() if now - at < _SHARED_SECONDS
        } | {tenant: now}

    def paused(self) -> tuple[Sequence[str], float]:
        """Return the tenants that may not start a job yet, and the seconds until the first may."""
        now = self._clock()
        recent = [one for one, at in self._started.items() if now - at < _SHARED_SECONDS]
        if len(recent) < 2:
            return (), inf
        waits = {one: self._started[one] + self._interval - now for one in recent}
        paused = {one: seconds for one, seconds in waits.items() if seconds > 0}
        return tuple(paused), min(paused.values(), default=inf)
