"""What waits goes together, whoever asked for it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.support.batching import ManualExecutor

from vtryon_services.engine.batching.dynamic_batcher import DynamicBatcher


class Work:
    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, items: Sequence[str]) -> list[str]:
        self.batches.append(list(items))
        if "broken" in items:
            raise RuntimeError("broken")
        return [item.upper() for item in items]


def test_items_of_one_call_go_together_with_those_that_wait_and_are_alike() -> None:
    executor, work = ManualExecutor(), Work()
    batcher = DynamicBatcher(executor, work, len, 3)
    first = batcher.submit("one", "two", "three")
    second = batcher.submit("six", "ten")
    executor.run_all()
    assert work.batches == [["one", "two", "six"], ["three"], ["ten"]]
    assert [future.result() for future in [*first, *second]] == [
        "ONE",
        "TWO",
        "THREE",
        "SIX",
        "TEN",
    ]


def test_nothing_asks_for_nothing() -> None:
    executor = ManualExecutor()
    assert DynamicBatcher(executor, Work(), len, 3).submit() == []
    assert not executor.tasks


def test_who_fails_fails_alone_and_who_left_is_not_done() -> None:
    executor, work = ManualExecutor(), Work()
    batcher = DynamicBatcher(executor, work, lambda _: None, 4)
    good, broken, left = batcher.submit("good", "broken", "left")
    left.cancel()
    executor.run_all()
    assert work.batches == [["good", "broken"], ["good"], ["broken"]]
    assert good.result() == "GOOD"
    with pytest.raises(RuntimeError, match="broken"):
        broken.result()
