"""One attempt at a job: the pipeline runs it, and its events are stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import structlog
from opentelemetry import metrics

from vtryon.errors import (
    DeadlineError,
    OverloadedError,
    Reason,
    RequestError,
    RunCancelledError,
    StageError,
    UnavailableError,
    VtryonError,
)
from vtryon.events import (
    Event,
    Finished,
    Preview,
    Queued,
    ResumeChunk,
    StageStarted,
    StepFinished,
)
from vtryon.jobs import Job, JobState
from vtryon.run import Result, Run
from vtryon.tensors import Tensor
from vtryon.types import DataType, Priority, Stage, TensorSpec, TryOnOptions
from vtryon.wire.call_status import is_being_cancelled
from vtryon_services.jobs.changes import LeaseLostError
from vtryon_services.jobs.notifier import OUTCOMES
from vtryon_services.jobs.records import (
    EventBatch,
    Leased,
    Outcome,
    Resume,
    failed,
    out_of_time,
)
from vtryon_services.jobs.seals import Seal
from vtryon_services.storage.outage import Outage, StorageError

if TYPE_CHECKING:
    from vtryon_services.jobs.runner import Runner

T = TypeVar("T")
_log = structlog.get_logger("vtryon.jobs")
_WRITE_SECONDS = 0.1
_LONGEST_CALL_SECONDS = 3600.0
_SLACK_SECONDS = 1.0  # between the clocks of a call and of the job store
_ended = metrics.get_meter("vtryon").create_counter(
    "vtryon.jobs.ended", description="Jobs that have ended, by state."
)


class Attempt:
    """One attempt at one job."""

    def __init__(self, leased: Leased, runner: Runner) -> None:
        self._leased = leased
        self._leases = runner.leases
        self._artifacts = runner.artifacts
        self._seals = runner.seals
        self._seal: Seal | None = None
        self._client = runner.client.acting_for(leased.tenant)
        self._notifier = runner.notifier
        self._settings = runner.settings
        self._run: Run[Result] | None = None
        self._cancelled = False
        self._happened: list[tuple[datetime, Event]] = []
        self._written_at = time.monotonic()
        self._step = self._steps = 0
        self._size = (1, 1)
        self._latents = bytearray()
        self._kept = leased.resume

    def cancel(self) -> None:
        """Leave the try-on."""
        self._cancelled = True
        if self._run is not None:
            self._run.cancel()

    async def run(self) -> None:
        """Run the try-on, and store its outcome.

        Raises:
            LeaseLostError: the lease has passed to another runner.
        """
        try:
            result = await self._draw()
            artifact = await self._keep_picture(result)
        except asyncio.CancelledError:
            if not is_being_cancelled():  # something that it waited for was, which is a failure
                await self._fail(StageError("what the job waited for was cancelled"))
                return
            await self._hand_back()
            raise
        except VtryonError as error:
            await self._fail(error)
            return
        detail = Job(
            self._leased.id,
            picture=result.picture.image,
            ledger=result.ledger,
            fits=result.fits,
            model_digests=result.model_digests,
            # Resume points are this service's affair: the caller has asked for none.
            unused_options=tuple(
                one for one in result.unused_options if not one.field.startswith("resume")
            ),
        )
        await self._finish(Outcome(JobState.SUCCEEDED, detail, artifact))

    async def _hand_back(self) -> None:
        """Return the job for another process to continue; if that fails, the lease expires."""
        with suppress(LeaseLostError, StorageError):
            if self._happened:
                await self._leases.record(self._leased, self._unwritten())
            await self._leases.put_back(self._leased, 0, counted=False)
            self._notifier.notify(self._leased.id, OUTCOMES)

    async def _keep_picture(self, result: Result) -> str:
        name = f"{self._leased.id}/{self._leased.fence}/picture"
        data = result.picture.data
        return await self._insist(lambda: self._artifacts.put(name, data), give_up=True)

    async def _insist(self, write: Callable[[], Awaitable[T]], *, give_up: bool = False) -> T:
        """Retry a write while the storage is unavailable, so that computed results are not lost.

        Args:
            write: the write to retry.
            give_up: stop when the job is cancelled or out of time.

        Raises:
            LeaseLostError: the lease has passed to another runner.
            StorageError: the retries were given up.
        """
        outage = Outage(_log, "what a job did could not be written down yet")
        while True:
            try:
                done = await write()
            except StorageError as error:
                if give_up and (self._cancelled or time.time() > self._leased.deadline):
                    raise
                await asyncio.sleep(outage.failed(error))
                continue
            outage.over()
            return done

    async def _options(self) -> TryOnOptions:
        """Give the options with the prompts."""
        leased = self._leased
        if (seal := await self._seals.of(leased.id)) is None:
            raise RequestError("the job was erased", reason=Reason.NOT_FOUND)
        self._seal = seal
        return seal.open_prompts(leased.options, leased.sealed)

    async def _draw(self) -> Result:
        leased = self._leased
        left = leased.deadline - time.time()
        if left <= 0:
            raise DeadlineError("out of time before it was done")
        latents = await self._resume_latents()
        try:
            return await self._try_on(left, latents)
        except VtryonError as error:
            if latents is None or error.reason is not Reason.MODEL_CHANGED:
                raise
        _log.info("begun anew: the models are others", job=leased.id)
        return await self._try_on(leased.deadline - time.time(), None)

    async def _try_on(self, left: float, latents: Tensor | None) -> Result:
        """Draw, from the first step or from where an earlier attempt of the same models stopped."""
        leased = self._leased
        person, *garments = [await self._artifacts.get(name) for _, name in leased.pictures]
        options = await self._options()
        self._run = self._client.try_on(
            person,
            garments,
            options=replace(options, priority=options.priority or Priority.BATCH),
            timeout_seconds=min(max(0.001, left), _LONGEST_CALL_SECONDS),
            request_id=leased.request_id,
            resume=leased.resume.point if leased.resume and latents else None,
            resume_latents=latents,
            resume_every=self._settings.resume_every,
        )
        if self._cancelled:
            raise RunCancelledError("the job was cancelled")
        async with self._run as run:
            async for event in run:
                await self._take(event)
            return await run

    async def _resume_latents(self) -> Tensor | None:
        if (resume := self._leased.resume) is None:
            return None
        try:
            data = await self._artifacts.get(resume.artifact)
        except VtryonError as error:
            _log.info("a resume point is gone", job=self._leased.id, reason=error.reason)
            return None  # from the first step, then
        return Tensor(TensorSpec(DataType.FP32, resume.shape), data)

    async def _take(self, event: Event) -> None:
        if isinstance(event, ResumeChunk):
            await self._take_resume(event)
            return
        if isinstance(event, Finished):
            return
        if isinstance(event, StageStarted) and event.stage is Stage.SAMPLING and event.accepted:
            chosen = event.accepted
            self._size = ((chosen.height or 8) // 8, (chosen.width or 8) // 8)
        if isinstance(event, Preview):
            event = self._sealed(event)
        if isinstance(event, StepFinished):
            self._step, self._steps = event.step, event.steps
        if (
            isinstance(event, Queued)
            and self._happened
            and isinstance(self._happened[-1][1], Queued)
        ):
            self._happened.pop()  # where it stands now is all that counts
        self._happened.append((datetime.now(UTC), event))
        if time.monotonic() - self._written_at > _WRITE_SECONDS:
            await self._write()

    def _sealed(self, preview: Preview) -> Preview:
        """Encrypt the picture of a preview, as it is kept."""
        if preview.picture is None or self._seal is None:
            return preview
        data = self._seal.close(preview.picture.data)
        return replace(preview, picture=replace(preview.picture, data=data))

    def _unwritten(self) -> EventBatch:
        """Return the events that are not stored yet, and clear them."""
        happened, self._happened = self._happened, []
        return EventBatch(happened, self._step, self._steps)

    async def _write(self) -> None:
        """Store pending events, several at once."""
        if self._happened:
            seen = self._unwritten()
            await self._insist(lambda: self._leases.record(self._leased, seen))
            self._notifier.notify(self._leased.id)
        self._written_at = time.monotonic()

    async def _take_resume(self, piece: ResumeChunk) -> None:
        if piece.offset == 0:
            self._latents = bytearray()
        self._latents += piece.data
        if len(self._latents) < piece.byte_length or self._run is None:
            return
        await self._write()  # a resume point is not ahead of what was told
        shape = self._shape(self._latents)
        name = f"{self._leased.id}/{self._leased.fence}/resume-{piece.step}"
        try:
            artifact = await self._artifacts.put(name, self._latents)
        except StorageError as error:  # without it another attempt begins earlier
            _log.warning("a resume point could not be kept", job=self._leased.id, cause=str(error))
            return
        resume = Resume(piece.point, artifact, shape)
        try:
            await self._insist(lambda: self._leases.keep_resume(self._leased, resume))
        except LeaseLostError:
            await self._drop(artifact)
            raise
        before, self._kept = self._kept, resume
        await self._drop(before.artifact if before else None)

    async def _drop(self, artifact: str | None) -> None:
        """Delete artifacts that are no longer needed; failures are deleted with the job."""
        with suppress(StorageError):
            await self._artifacts.erase([artifact] if artifact else [])

    def _shape(self, latents: bytearray) -> tuple[int, ...]:
        """Tell the latents' shape: (channels, height / 8, width / 8)."""
        height, width = self._size
        return (len(latents) // (4 * height * width), height, width)

    async def _fail(self, error: VtryonError) -> None:
        """End the job, or let another attempt follow."""
        leased = self._leased
        slack = _SLACK_SECONDS if isinstance(error, DeadlineError) else 0
        if self._cancelled:
            await self._finish(Outcome(JobState.CANCELLED, Job(leased.id)))
        elif leased.deadline - time.time() < slack:
            await self._finish(Outcome(JobState.FAILED, out_of_time(leased.id)))
        elif isinstance(error, (OverloadedError, StorageError)):
            # Whoever else is there goes first; that is no fault of the job's.
            await self._put_back(error, error.retry_after_seconds, counted=False)
        elif isinstance(error, (UnavailableError, StageError, DeadlineError)) and self._may_go_on:
            delay = self._settings.retry_seconds * 4 ** (leased.attempts - 1)
            await self._put_back(error, delay, counted=True)
        else:
            detail = failed(leased.id, error.reason, error.message, error.metadata)
            await self._finish(Outcome(JobState.FAILED, detail))

    async def _put_back(self, error: VtryonError, delay_seconds: float, *, counted: bool) -> None:
        await self._write()
        leased, reason = self._leased, error.reason
        _log.info("another attempt", job=leased.id, reason=reason, seconds=delay_seconds)
        await self._insist(lambda: self._leases.put_back(leased, delay_seconds, counted=counted))
        self._notifier.notify(leased.id, OUTCOMES)

    async def _finish(self, outcome: Outcome) -> None:
        leased, error = self._leased, outcome.detail.error
        last = self._unwritten()
        try:
            await self._insist(lambda: self._leases.finish(leased, outcome, last))
        except LeaseLostError:
            await self._drop(outcome.picture_artifact)
            raise
        self._notifier.notify(leased.id, OUTCOMES)
        await self._drop(self._kept.artifact if self._kept else None)
        _ended.add(1, {"state": outcome.state.value})
        facts = {"attempts": leased.attempts, "reason": error.reason if error else None}
        _log.info("job", job=leased.id, state=outcome.state.value, **facts)

    @property
    def _may_go_on(self) -> bool:
        return self._leased.attempts < self._settings.max_attempts
