"""The rate at which jobs of a tenant start."""

from __future__ import annotations

from math import inf

import pytest

from vtryon_services.jobs.starts import StartRate


def test_a_tenant_alone_starts_as_it_likes() -> None:
    rate = StartRate(8, clock=lambda: 0.0)
    for _ in range(100):
        rate.started("many")
        assert rate.paused() == ((), inf)


def test_beside_another_tenant_each_starts_at_its_rate() -> None:
    now = 0.0
    rate = StartRate(8, clock=lambda: now)
    rate.started("few")
    started = {"many": 0, "few": 1}
    while now < 2:
        for tenant in ("many", "few"):
            if tenant not in rate.paused()[0] and (tenant == "many" or now % 0.5 == 0):
                rate.started(tenant)
                started[tenant] += 1
        now += 1 / 64
    assert started["many"] == 16
    assert started["few"] == 4


def test_the_wait_is_that_of_the_tenant_that_may_start_first() -> None:
    now = 0.0
    rate = StartRate(8, clock=lambda: now)
    rate.started("few")
    now = 0.05
    rate.started("many")
    paused, seconds = rate.paused()
    assert set(paused) == {"few", "many"}
    assert seconds == pytest.approx(0.075)


def test_a_rate_below_one_in_ten_seconds_holds_as_well() -> None:
    now = 0.0
    rate = StartRate(0.05, clock=lambda: now)
    for tenant in ("few", "many"):
        rate.started(tenant)
    now = 15.0
    assert rate.paused() == (("few", "many"), 5.0)


def test_after_a_while_without_others_a_tenant_is_alone_again() -> None:
    now = 0.0
    rate = StartRate(8, clock=lambda: now)
    rate.started("few")
    now = 20.0
    rate.started("many")
    assert rate.paused() == ((), inf)
