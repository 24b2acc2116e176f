"""Rate limits per caller that delay instead of rejecting."""

from __future__ import annotations

import time

_FORGET_FROM = 1024


class Pace:
    """A token bucket per caller.

    Args:
        per_second: rate of one caller, in units of `take`.
        burst_seconds: size of the bucket, in seconds of the rate.
    """

    def __init__(self, per_second: float, burst_seconds: float) -> None:
        self._per_second = per_second
        self._burst_seconds = burst_seconds
        self._ends: dict[str, float] = {}  # when a caller is within its rate again

    def take(self, caller: str, amount: float) -> float:
        """Take an amount; return the seconds to wait until the caller is within its rate."""
        now = time.monotonic()
        earliest = now - self._burst_seconds
        end = max(earliest, self._ends.get(caller, earliest)) + amount / self._per_second
        if len(self._ends) >= _FORGET_FROM:
            self._ends = {one: ends for one, ends in self._ends.items() if ends > earliest}
        self._ends[caller] = end
        return max(0.0, end - now)
