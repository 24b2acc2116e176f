"""The outbox of jobs: their outcomes, for bridges that publish them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vtryon.jobs.types import JobUpdate
from vtryon.messages import ProtoType
from vtryon.v1 import outcome_pb2
from vtryon.wire.channel import Channel
from vtryon.wire.unary import ask

_PATH = "/vtryon.v1.OutcomeService/TakeOutcomes"


@dataclass(frozen=True, slots=True)
class JobOutcome(ProtoType):
    """A change of a job's state, to be published."""

    proto = outcome_pb2.Outcome
    id: int
    tenant: str
    update: JobUpdate | None
    traceparent: str = ""
    tracestate: str = ""
    baggage: str = ""
    correlation_id: bytes = b""


@dataclass(frozen=True, slots=True)
class TakeOutcomes(ProtoType):
    """Of `OutcomeService.TakeOutcomes`."""

    proto = outcome_pb2.TakeOutcomesRequest
    owner: str
    published: tuple[int, ...] = ()
    max_outcomes: int = 0
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TakenOutcomes(ProtoType):
    """The oldest that are not published."""

    proto = outcome_pb2.TakeOutcomesResponse
    outcomes: tuple[JobOutcome, ...] = ()


class Outcomes:
    """The outcomes of a mesh's jobs, for one owner at a time; see outcome.proto."""

    def __init__(self, channel: Channel, owner: str) -> None:
        self._channel = channel
        self._owner = owner

    async def take(
        self, published: Sequence[int] = (), *, most: int = 100, wait_seconds: float = 5.0
    ) -> tuple[JobOutcome, ...]:
        """Confirm published outcomes and fetch the next; empty while another owner holds the lease.

        Raises:
            VtryonError: the call failed; confirming the same outcomes again is safe.
        """
        asked = TakeOutcomes(self._owner, tuple(published), most, wait_seconds)
        return (await ask(self._channel, _PATH, asked, TakenOutcomes)).outcomes

    async def give_back(self, published: Sequence[int] = ()) -> None:
        """Let another owner have the turn."""
        await self.take(published, most=0, wait_seconds=0)
