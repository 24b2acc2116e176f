"""Takes jobs from the ledger and has the pipeline draw them, at the priority BATCH."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import fields
from datetime import UTC, datetime

import structlog
from opentelemetry import context, metrics, propagate

from vtryon.client import Client
from vtryon.errors import (
    DeadlineError,
    OverloadedError,
    Reason,
    RunCancelledError,
    StageError,
    UnavailableError,
    VtryonError,
)
from vtryon.events import Event, Finished, Queued, ResumeChunk, StageStarted, StepFinished
from vtryon.jobs import Job, JobState
from vtryon.run import Result, Run
from vtryon.tensors import Tensor
from vtryon.types import DataType, Priority, Stage, TensorSpec
from vtryon_services.jobs.bell import OUTCOMES, WORK, Bell
from vtryon_services.jobs.ledger import LeaseLostError, Ledger
from vtryon_services.jobs.records import Leased, Outcome, Resume, failed, out_of_time
from vtryon_services.jobs.settings import JobsSettings
from vtryon_services.runtime.artifacts import Artifacts

_log = structlog.get_logger("vtryon.jobs")
_WRITE_SECONDS = 0.1
_LONGEST_CALL_SECONDS = 3600.0
_SWEEP_SECONDS = 5.0
_SLACK_SECONDS = 1.0  # between the clocks of a call and of the ledger
_meter = metrics.get_meter("vtryon")
_ended = _meter.create_counter("vtryon.jobs.ended", description="Jobs that have ended, by state.")
_open = _meter.create_gauge("vtryon.jobs.open", description="Jobs that have not, by state.")
_unpublished = _meter.create_gauge(
    "vtryon.jobs.unpublished", description="Changes of state that wait for a bridge."
)


class Runner:
    """Runs several jobs at once, until it is retired."""

    def __init__(
        self,
        ledger: Ledger,
        artifacts: Artifacts,
        client: Client,
        bell: Bell,
        settings: JobsSettings,
    ) -> None:
        self.ledger = ledger
        self.artifacts = artifacts
        self.client = client
        self.bell = bell
        self.settings = settings
        self.owner = uuid.uuid4().hex
        self._active: dict[str, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to take jobs."""
        loops = [self._keep_hold(), self._sweep()]
        if self.settings.runners:
            loops.append(self._take_jobs())
        self._loops = [asyncio.create_task(loop) for loop in loops]

    def cancel(self, job_id: str) -> None:
        """Leave a job's try-on, if it runs here."""
        if attempt := self._active.get(job_id):
            attempt.cancel()

    async def retire(self) -> None:
        """Take no more jobs, and put those that run back, with their resume points."""
        for task in (*self._loops, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._loops, *self._tasks, return_exceptions=True)

    async def _take_jobs(self) -> None:
        await self.client.channel.grpc.channel_ready()
        with self.bell.listen(WORK) as news:
            while True:
                leased = None
                if len(self._tasks) < self.settings.runners:
                    leased = await self._attempt_lease()
                if leased is None:
                    await news.wait(self.settings.poll_seconds)
                    continue
                task = asyncio.create_task(self._run(leased))
                self._tasks.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.bell.ring(WORK)

    async def _attempt_lease(self) -> Leased | None:
        try:
            return await self.ledger.lease(self.owner, self.settings.lease_seconds)
        except Exception:  # the database may come back
            _log.exception("no job could be taken")
            return None

    async def _keep_hold(self) -> None:
        """Renew leases, and hear of cancels that came by other processes."""
        renewed = 0.0
        while True:
            await asyncio.sleep(self.settings.poll_seconds)
            if not self._active:
                continue
            try:
                if time.monotonic() - renewed > self.settings.lease_seconds / 3:
                    await self.ledger.renew(self.owner, self.settings.lease_seconds)
                    renewed = time.monotonic()
                for job_id in await self.ledger.cancelled(self.owner):
                    self.cancel(job_id)
            except Exception:  # the leases tell how long that may last
                _log.exception("leases could not be renewed")

    async def _sweep(self) -> None:
        while True:
            try:
                await self.artifacts.erase_folders(await self.ledger.expired())
                for state, count in (await self.ledger.counts()).items():
                    _open.set(count, {"state": state.value})
                if self.settings.outbox:
                    _unpublished.set(await self.ledger.outbox.count())
            except Exception:
                _log.exception("jobs could not be looked through")
            await asyncio.sleep(_SWEEP_SECONDS)

    async def _run(self, leased: Leased) -> None:
        attempt = Attempt(leased, self)
        self._active[leased.id] = attempt
        context.attach(propagate.extract({"traceparent": leased.traceparent}))  # this task's own
        self.bell.ring(leased.id, OUTCOMES)
        try:
            await attempt.run()
        except LeaseLostError:
            _log.warning("another runner has the job", job=leased.id, fence=leased.fence)
        except Exception:  # the lease ends, and somebody else tries
            _log.exception("an attempt failed", job=leased.id)
        finally:
            del self._active[leased.id]
            self.bell.ring(leased.id, OUTCOMES)


class Attempt:
    """One attempt at one job."""

    def __init__(self, leased: Leased, runner: Runner) -> None:
        self._leased = leased
        self._ledger = runner.ledger
        self._artifacts = runner.artifacts
        self._client = runner.client.acting_for(leased.tenant)
        self._bell = runner.bell
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
        """Draw, and write down how it went.

        Raises:
            LeaseLostError: somebody else has the job.
        """
        try:
            result = await self._draw()
        except asyncio.CancelledError:
            await self._write()
            await self._ledger.put_back(self._leased, 0, counted=False)
            raise
        except VtryonError as error:
            await self._write()
            await self._fail(error)
            return
        await self._write()
        name = f"{self._leased.id}/{self._leased.fence}/picture"
        artifact = await self._artifacts.put(name, result.picture.data)
        detail = Job(
            self._leased.id,
            picture=result.picture.image,
            ledger=result.ledger,
            fits=result.fits,
            unused_options=result.unused_options,
        )
        await self._finish(Outcome(JobState.SUCCEEDED, detail, artifact))

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
        options = leased.options
        plain = {one.name: getattr(options, one.name) for one in fields(options)}
        self._run = self._client.try_on(
            person,
            garments,
            **{
                **plain,
                "previews": options.previews or False,
                "priority": Priority.BATCH,
            },
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
        except VtryonError:
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

    async def _write(self) -> None:
        """Write what has happened, several events at once."""
        happened, self._happened = self._happened, []
        if happened:
            await self._ledger.record(self._leased, happened, self._step, self._steps)
            self._bell.ring(self._leased.id)
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
        artifact = await self._artifacts.put(name, self._latents)
        before, self._kept = self._kept, Resume(piece.point, artifact, shape)
        await self._ledger.keep_resume(self._leased, self._kept)
        await self._artifacts.erase([before.artifact] if before else [])

    def _shape(self, latents: bytearray) -> tuple[int, ...]:
        """Tell the latents' shape: (channels, height / 8, width / 8)."""
        height, width = self._size
        return (len(latents) // (4 * height * width), height, width)

    async def _fail(self, error: VtryonError) -> None:
        """End the job, or let another attempt follow."""
        leased = self._leased
        if self._cancelled:
            outcome = Outcome(JobState.CANCELLED, Job(leased.id))
        elif leased.deadline - time.time() < (
            _SLACK_SECONDS if isinstance(error, DeadlineError) else 0
        ):
            outcome = Outcome(JobState.FAILED, out_of_time(leased.id))
        elif isinstance(error, OverloadedError):
            # Whoever else is there goes first; that is no fault of the job's.
            await self._ledger.put_back(leased, error.retry_after_seconds, counted=False)
            return
        elif isinstance(error, (UnavailableError, StageError, DeadlineError)) and self._may_go_on:
            delay = self._settings.retry_seconds * 4 ** (leased.attempts - 1)
            _log.info("another attempt", job=leased.id, reason=error.reason, seconds=delay)
            await self._ledger.put_back(leased, delay, counted=True)
            return
        else:
            detail = failed(leased.id, error.reason, error.message, error.metadata)
            outcome = Outcome(JobState.FAILED, detail)
        await self._finish(outcome)

    async def _finish(self, outcome: Outcome) -> None:
        leased, error = self._leased, outcome.detail.error
        await self._ledger.finish(leased, outcome)
        _ended.add(1, {"state": outcome.state.value})
        facts = {"attempts": leased.attempts, "reason": error.reason if error else None}
        _log.info("job", job=leased.id, state=outcome.state.value, **facts)

    @property
    def _may_go_on(self) -> bool:
        return self._leased.attempts < self._settings.max_attempts
