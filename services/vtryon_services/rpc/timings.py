"""A stage's own account of a call."""

from __future__ import annotations

from vtryon.events import Hop, Ledger
from vtryon.types import Stage
from vtryon_services.rpc.call import Call


def one_hop(stage: Stage, call: Call, queue: float, compute: float) -> Ledger:
    """Split a call's time so far: waiting, computing, and the rest, which went into bytes."""
    wall = call.elapsed_seconds
    hop = Hop(
        stage,
        queue_seconds=queue,
        transfer_seconds=max(0.0, wall - queue - compute),
        compute_seconds=compute,
    )
    return Ledger(hop.total_seconds, (hop,))
