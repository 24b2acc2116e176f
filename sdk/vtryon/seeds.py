"""Seeds: their range, and how one is chosen for a request that names none.

Any seed of 64 bits is accepted. Chosen ones have 53 bits, so that a program that holds numbers as
floating point, as JavaScript does, can read a seed and send it back unchanged.
"""

from __future__ import annotations

import secrets

MAX_SEED = 2**64 - 1
CHOSEN_SEED_BITS = 53


def draw_seed() -> int:
    """Draw a seed at random."""
    return secrets.randbits(CHOSEN_SEED_BITS)


def derive_seed(digest: bytes) -> int:
    """Derive a seed from a digest of at least 8 bytes: equal digests give equal seeds."""
    return int.from_bytes(digest[-8:]) >> (64 - CHOSEN_SEED_BITS)
