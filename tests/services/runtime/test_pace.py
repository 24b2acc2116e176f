"""A caller pauses for what it took, and no other does."""

from __future__ import annotations

import pytest

from vtryon_services.runtime import pace as module
from vtryon_services.runtime.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_caller_pauses_for_what_is_over_its_rate(clock: list[float]) -> None:
    pace = Pace(10, burst_seconds=1)
    assert pace.take("a", 10) == 0
    assert pace.take("a", 5) == pytest.approx(0.5)
    assert pace.take("b", 10) == 0
    clock[0] += 0.5
    assert pace.take("a", 1) == pytest.approx(0.1)


def test_no_more_is_saved_up_than_the_burst(clock: list[float]) -> None:
    pace = Pace(10, burst_seconds=1)
    pace.take("a", 1)
    clock[0] += 100
    assert pace.take("a", 10) == 0
    assert pace.take("a", 10) == pytest.approx(1)


def test_callers_that_have_paused_are_forgotten(clock: list[float]) -> None:
    pace = Pace(10, burst_seconds=1)
    for number in range(5000):
        clock[0] += 0.01
        pace.take(str(number), 1)
    assert len(pace._ends) <= 1024
