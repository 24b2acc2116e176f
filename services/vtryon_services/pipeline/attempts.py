"""Failover: whether a stage is attempted again, and the start of that attempt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from vtryon.errors import Reason, UnavailableError, VtryonError
from vtryon.events import ResumeChunk
from vtryon.types import DataType, Payload, PayloadKind, ResumePoint, SampleStart, Start, TensorSpec
from vtryon.wire.payloads import Outgoing
from vtryon.wire.retry import RetryBudget

S = TypeVar("S", bound=Start)
_FIRST_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class FailoverPolicy:
    """How a pipeline deals with stages that go away; see its settings."""

    budget: RetryBudget
    attempts: int
    resume_every: int


@dataclass(slots=True)
class StageAttempts:
    """One stage's attempts at one request.

    Attributes:
        number: of attempts that have failed.
        limit: of attempts in all.
        told_to_caller: whether the caller wants resume points as well.
    """

    budget: RetryBudget
    limit: int
    told_to_caller: bool = False
    number: int = 0
    _step: int = 0
    _latents: bytes = b""
    _digest: str = ""
    _arriving: bytearray | None = None

    def may_go_on(self, error: VtryonError, remaining_seconds: float) -> bool:
        """Tell whether another attempt follows a failed one, and count it.

        One follows at a server of another model too, from the first step.
        """
        self._arriving = None
        self.number += 1
        changed = error.reason is Reason.MODEL_CHANGED and bool(self._step)
        if changed:
            self._step, self._latents, self._digest = 0, b"", ""
        return (
            (isinstance(error, UnavailableError) or changed)
            and self.number < self.limit
            and remaining_seconds > self.pause_seconds
            and self.budget.spend()
        )

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next attempt: 0.05, 0.2, 0.8 seconds.

        The first finds the connection to a dead server broken, the last a server restarted.
        """
        return float(_FIRST_PAUSE_SECONDS * 4 ** (self.number - 1))

    def take(self, chunk: ResumeChunk) -> None:
        """Keep a resume point once it is whole."""
        if chunk.offset == 0:
            self._arriving = bytearray()
        if self._arriving is None or len(self._arriving) != chunk.offset:
            return
        self._arriving += chunk.data
        if len(self._arriving) == chunk.byte_length:
            self._step, self._latents, self._arriving = chunk.step, bytes(self._arriving), None
            self._digest = chunk.model_digest

    def start(self, start: S) -> S:
        """Give the start message of the next attempt."""
        if not isinstance(start, SampleStart):
            return start
        resume = ResumePoint(self._step, self._digest) if self._step else start.resume
        return replace(start, resume=resume)

    def payloads(self, start: Start, outgoing: Sequence[Outgoing]) -> list[Outgoing]:
        """Give the payloads of the next attempt: with the newest resume point alone."""
        if not self._step or not isinstance(start, SampleStart):
            return list(outgoing)
        channels = len(self._latents) // (4 * start.width * start.height // 64)
        shape = (channels, start.height // 8, start.width // 8)
        spec = TensorSpec(DataType.FP32, shape)
        payload = Payload(PayloadKind.RESUME_LATENTS, len(self._latents), tensor=spec)
        others = [one for one in outgoing if one.payload.kind is not PayloadKind.RESUME_LATENTS]
        return [*others, Outgoing(payload, self._latents)]
