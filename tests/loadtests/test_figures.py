"""Percentiles are measured values, by nearest rank."""

from __future__ import annotations

import math

import pytest

from vtryon_loadtests.figures import percentile


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([2.0, 1.0], 95, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 50, 2.0),
        (list(range(1, 101)), 99, 99),
        (list(range(1, 101)), 100, 100),
        ([7.0], 1, 7.0),
    ],
)
def test_a_percentile(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_there_is_none_of_nothing() -> None:
    assert math.isnan(percentile([], 50))
