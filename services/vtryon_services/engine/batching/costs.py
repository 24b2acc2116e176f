"""Cost model of a step, fitted to measured steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

_FORGET = 0.98


@dataclass(slots=True)
class LinearFit:
    """A line through (rows, seconds), by least squares that forget.

    Source: "Theory and Practice of Recursive Identification", Ljung and Söderström 1983, 2.2.
    """

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_squared: float = 0.0
    rows_seconds: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Take one measurement."""
        for name, value in (
            ("weight", 1.0),
            ("rows", rows),
            ("seconds", seconds),
            ("rows_squared", rows * rows),
            ("rows_seconds", rows * seconds),
        ):
            setattr(self, name, _FORGET * getattr(self, name) + value)

    def at(self, rows: int) -> float:
        """Give the seconds of a pass of so many rows, never below a proportional share."""
        mean = self.rows / self.weight
        level = self.seconds / self.weight
        variance = self.rows_squared / self.weight - mean * mean
        if variance < 1e-3:
            return level * max(1.0, rows / mean)
        slope = (self.rows_seconds / self.weight - mean * level) / variance
        slope = min(max(slope, 0.0), level / mean)
        return level + slope * (rows - mean)


class StepCosts:
    """Seconds of a forward by its rows, for each bucket of row lengths: powers of √2 of tokens."""

    def __init__(self) -> None:
        self._fits: dict[int, LinearFit] = {}

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """Record the seconds of a forward pass with its rows and tokens."""
        self._fits.setdefault(_bucket(tokens / rows), LinearFit()).add(rows, seconds)

    def seconds(self, rows: int, tokens_per_row: float) -> float | None:
        """Predict a forward; None before any was seen. Other lengths count in proportion."""
        if not self._fits:
            return None
        wanted = _bucket(tokens_per_row)
        nearest = min(self._fits, key=lambda bucket: abs(bucket - wanted))
        return self._fits[nearest].at(rows) * 2 ** ((wanted - nearest) / 2)


def _bucket(tokens: float) -> int:
    return round(2 * log2(max(1.0, tokens)))
