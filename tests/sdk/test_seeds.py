"""Seeds that are chosen for a request pass through programs that hold numbers as floating point."""

from __future__ import annotations

from vtryon.seeds import derive_seed, draw_seed

LARGEST_EXACT = 2**53 - 1  # Number.MAX_SAFE_INTEGER


def test_chosen_seeds_are_numbers_that_javascript_holds() -> None:
    drawn = [draw_seed() for _ in range(100)]
    assert all(0 <= seed <= LARGEST_EXACT for seed in drawn)
    assert len(set(drawn)) == 100
    assert derive_seed(b"\xff" * 32) == LARGEST_EXACT
    assert derive_seed(b"\xff" * 24 + bytes(8)) == 0
