"""Who goes first: priorities, fair shares, deadlines, ageing."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from vtryon.types import Priority
from vtryon_services.engine.batching.scheduling import (
    QueuedRequest,
    SchedulingPolicy,
    steps_until_free,
)

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH


def entry(
    priority: Priority = INTERACTIVE,
    tenant: str = "",
    deadline: float = inf,
    steps: int = 4,
    arrived: float = 0.0,
) -> QueuedRequest:
    return QueuedRequest.new(priority, tenant, deadline, (steps, 1, 100), arrived)


def test_interactive_takes_the_slot_of_batch_and_batch_gets_it_back() -> None:
    order = SchedulingPolicy(slots=1, ageing_seconds=100)
    patient, urgent = entry(BATCH), entry(INTERACTIVE)
    assert order.pick([patient], [], 0) == [patient]
    assert order.pick([patient, urgent], [patient], 1) == [urgent]
    assert order.pick([patient], [], 2) == [patient]


def test_an_earlier_deadline_goes_first_but_takes_no_running_slot_away() -> None:
    order = SchedulingPolicy(slots=1, ageing_seconds=100)
    late, early, running = entry(deadline=9), entry(deadline=5), entry(deadline=99)
    assert order.ranked([late, early, running], [running], 0) == [running, early, late]


def test_a_batch_request_that_has_waited_long_counts_as_interactive() -> None:
    order = SchedulingPolicy(slots=1, ageing_seconds=10)
    old = entry(BATCH, arrived=0.0)
    fresh = entry(INTERACTIVE, arrived=11.0)
    assert order.pick([old, fresh], [], 5) == [fresh]
    assert SchedulingPolicy(1, 10).ranked([old, fresh], [], 11) == [old, fresh]


def test_a_tenant_at_ten_times_the_load_gets_its_share() -> None:
    order = SchedulingPolicy(slots=2, ageing_seconds=1000)
    waiting = [entry(tenant="loud") for _ in range(100)] + [
        entry(tenant="quiet") for _ in range(10)
    ]
    started: list[str] = []
    while waiting and len(started) < 20:
        chosen = order.pick(waiting, [], 0)
        started += [one.tenant for one in chosen]
        waiting = [one for one in waiting if one not in chosen]
    assert started.count("quiet") == 10


def test_a_tenant_that_was_away_has_saved_nothing_up() -> None:
    order = SchedulingPolicy(slots=1, ageing_seconds=1000)
    for _ in range(50):
        order.pick([entry(tenant="a"), entry(tenant="b")], [], 0)
    waiting = [entry(tenant="a") for _ in range(8)] + [entry(tenant="new") for _ in range(8)]
    first = [one.tenant for one in order.ranked(waiting, [], 0)][:8]
    assert 3 <= first.count("new") <= 5


@given(
    st.lists(st.tuples(st.sampled_from(Priority), st.integers(1, 9)), max_size=12),
    st.integers(1, 5),
)
def test_picking_wastes_no_slot_and_ranks_everybody_once(
    drawn: list[tuple[Priority, int]], slots: int
) -> None:
    order = SchedulingPolicy(slots, ageing_seconds=10)
    entries = [entry(priority, steps=steps) for priority, steps in drawn]
    ranked = order.ranked(entries, entries[:2], 0)
    assert sorted(map(id, ranked)) == sorted(map(id, entries))
    assert len(order.pick(entries, entries[:2], 0)) == min(slots, len(entries))


def test_a_newcomer_waits_for_the_first_slot_that_comes_free() -> None:
    ahead = [entry(steps=4), entry(steps=2), entry(steps=5)]
    assert steps_until_free(ahead, slots=4) == 0
    assert steps_until_free(ahead, slots=3) == 2
    assert steps_until_free(ahead, slots=2) == 4  # 4 and 2+5 steps
    assert steps_until_free(ahead, slots=1) == 11
    order = SchedulingPolicy(2, 10)
    assert order.starts(ahead, ahead[:2], entry(), 0) == (3, 4)
