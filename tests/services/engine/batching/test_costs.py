"""What a step is expected to cost."""

import pytest

from vtryon_services.engine.batching.costs import StepCosts


def test_nothing_is_expected_before_anything_was_seen() -> None:
    assert StepCosts().seconds(1, 100) is None


def test_a_line_is_found_again() -> None:
    costs = StepCosts()
    for rows in [1, 4, 16, 8, 2, 12] * 10:
        costs.observe(rows, rows * 190, 0.01 + 0.005 * rows)
    for rows in (1, 6, 16, 32):
        assert costs.seconds(rows, 190) == pytest.approx(0.01 + 0.005 * rows, rel=0.01)


def test_a_slower_machine_is_noticed() -> None:
    costs = StepCosts()
    for seconds in [0.1] * 50 + [0.2] * 200:
        costs.observe(4, 400, seconds)
    assert costs.seconds(4, 100) == pytest.approx(0.2, rel=0.05)


def test_one_batch_size_alone_is_taken_in_proportion_upwards() -> None:
    costs = StepCosts()
    costs.observe(2, 200, 0.1)
    assert costs.seconds(4, 100) == pytest.approx(0.2)
    assert costs.seconds(1, 100) == pytest.approx(0.1)


def test_other_lengths_count_in_proportion() -> None:
    costs = StepCosts()
    costs.observe(2, 2 * 128, 0.1)
    assert costs.seconds(2, 512) == pytest.approx(0.4, rel=0.1)
