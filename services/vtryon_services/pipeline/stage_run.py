"""One stage's part in a try-on, as the pipeline sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from vtryon.errors import Reason, RunCancelledError, StageError, UnavailableError, VtryonError
from vtryon.events import (
    Accepted,
    Chunk,
    Event,
    Finished,
    Fit,
    Hop,
    Output,
    Preview,
    Queued,
    ResumeChunk,
    StageFinished,
    StageStarted,
    StepFinished,
)
from vtryon.types import PayloadKind, Stage
from vtryon.wire.payloads import Outgoing
from vtryon_services.pipeline.attempts import StageAttempts
from vtryon_services.pipeline.clients import StageCall, StageClient
from vtryon_services.pipeline.relay import Fanout
from vtryon_services.rpc.call import Call

_log = structlog.get_logger("vtryon.pipeline")
Emit = Callable[[Event], Awaitable[None]]


class StageRun:
    """Runs one call of a stage: events go to `emit`, the bytes of the result to relays.

    Attributes:
        output: the result's payloads with their relays, once the stage has declared them.
        model_digest: of the model that computes the result, as reported by its server.
        fits: the resizes reported by the stage.
    """

    def __init__(
        self,
        stage: Stage,
        subjects: Sequence[str],
        request: Call,
        emit: Emit,
        attempts: StageAttempts,
    ) -> None:
        self.stage = stage
        self.subject = ", ".join(subjects)
        self.output: asyncio.Future[list[Outgoing]] = asyncio.get_running_loop().create_future()
        self.fits: tuple[Fit, ...] = ()
        self.model_digest = ""
        self._subjects = subjects
        self._request = request
        self._emit = emit
        self._attempts = attempts
        self._steps_told = 0
        self._heard_at: float | None = None  # in seconds since the request began
        self._started_at = request.elapsed_seconds
        self._output_at = self._started_at
        self._own: Hop | None = None
        self._fanout = Fanout(())

    async def run(
        self, client: StageClient, open_call: Callable[[StageAttempts], StageCall]
    ) -> None:
        """Make the call and see it through, elsewhere if the server that had it goes away.

        Raises:
            VtryonError: it failed; the metadata names the stage.
        """
        try:
            while not await self._attempt(open_call):
                await asyncio.sleep(self._attempts.pause_seconds)
                heard_at = self._started_at if self._heard_at is None else self._heard_at
                silent = self._request.elapsed_seconds - heard_at
                remaining = self._request.remaining_seconds
                await client.recovered(silent, remaining, answered=self._heard_at is not None)
        finally:
            self.output.cancel()

    async def _attempt(self, open_call: Callable[[StageAttempts], StageCall]) -> bool:
        """Make the call once; false where another attempt is to follow."""
        try:
            async with open_call(self._attempts) as call:
                async for event in call:
                    await self._take(event)
        except VtryonError as error:
            named = self._name(error)
            if not self._attempts.may_go_on(named, self._request.remaining_seconds):
                raise named from None
            _log.info("another attempt", stage=self.stage.value, reason=named.reason)
            return False
        return True

    def hop(self, *, critical: bool) -> Hop:
        """Give this stage's line in the ledger: up to its output, so that hops don't overlap."""
        own = self._own or Hop(self.stage)
        total = self._output_at - self._started_at
        rest = total - own.queue_seconds - own.compute_seconds
        return Hop(
            self.stage,
            self.subject,
            start_seconds=self._started_at,
            queue_seconds=own.queue_seconds,
            transfer_seconds=max(0.0, rest),
            compute_seconds=own.compute_seconds,
            critical=critical,
        )

    @property
    def output_at(self) -> float:
        """When the result was declared, in seconds since the request began."""
        return self._output_at

    async def _keep(self, event: ResumeChunk) -> None:
        self._attempts.take(event)
        if self._attempts.told_to_caller:
            await self._emit(event)

    async def _take(self, event: Event) -> None:
        self._heard_at = self._request.elapsed_seconds
        match event:
            case Accepted() if not self._attempts.number or (
                event.model_digest != self.model_digest
            ):
                await self._begin(event)
            case StepFinished() if event.step > self._steps_told:
                self._steps_told = event.step
                await self._emit(event)
            case Queued():
                await self._emit(event)
            case Preview() if event.step >= self._steps_told:
                await self._emit(event)
            case ResumeChunk():
                await self._keep(event)
            case Output() if self.output.done():
                self._fanout.expect(event)
            case Output():
                await self._declare(event)
            case Chunk():
                await self._fanout.pass_on(event)
            case Finished(ledger, fits):
                self._own = ledger.hops[0] if ledger and ledger.hops else None
                self.fits = tuple(
                    replace(fit, subject=subject)
                    for fit, subject in zip(fits, self._subjects, strict=False)
                )
            case _:
                pass

    async def _begin(self, accepted: Accepted) -> None:
        """Tell which model computes: once, and again where another attempt has another one."""
        if self.output.done():
            raise StageError(f"another attempt of {self.stage} computes with another model")
        self.model_digest = accepted.model_digest
        await self._emit(StageStarted(self.stage, self.subject, accepted))

    async def _declare(self, output: Output) -> None:
        self._output_at = self._request.elapsed_seconds
        self._fanout = Fanout(output.payloads)
        elapsed = self._output_at - self._started_at
        await self._emit(StageFinished(self.stage, self.subject, elapsed))
        self.output.set_result(
            [
                Outgoing(payload, self._fanout.relay(index))
                for index, payload in enumerate(output.payloads)
            ]
        )

    def _name(self, error: VtryonError) -> VtryonError:
        stage = {"stage": self.stage.value}
        if isinstance(error, RunCancelledError):
            return UnavailableError(
                f"{self.stage} ended the call, it is going away",
                reason=Reason.SHUTTING_DOWN,
                metadata=stage,
            )
        if isinstance(error, UnavailableError) and "status" in error.metadata:
            return UnavailableError(f"{self.stage} can't be reached", metadata=stage)
        error.metadata = {**stage, **error.metadata}
        return error


def as_kind(outgoing: Outgoing, kind: PayloadKind) -> Outgoing:
    """Declare the same bytes as a payload of another kind."""
    return replace(outgoing, payload=replace(outgoing.payload, kind=kind))
