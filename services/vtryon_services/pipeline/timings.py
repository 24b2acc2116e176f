"""The pipeline's account of a request."""

from __future__ import annotations

from collections.abc import Sequence

from vtryon.events import Hop, Ledger
from vtryon.types import Payload, Stage


def with_own_share(hops: Sequence[Hop], wall_seconds: float) -> Ledger:
    """Add the pipeline's own hop, so that the critical ones sum to the wall time."""
    accounted = sum(hop.total_seconds for hop in hops if hop.critical)
    own = Hop(Stage.PIPELINE, transfer_seconds=max(0.0, wall_seconds - accounted))
    return Ledger(max(wall_seconds, accounted), (*hops, own))


def name_subjects(payloads: Sequence[Payload]) -> list[str]:
    """Name the pictures of a request, in their order."""
    garments = [f"garment {number}" for number in range(2, len(payloads))]
    return ["person", "garment", *garments][: len(payloads)]
