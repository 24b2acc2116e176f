"""The running batch: one thread steps it, requests join and leave between two steps."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Protocol

import torch

from vtryon.errors import (
    DeadlineError,
    OverloadedError,
    Reason,
    StageError,
    UnavailableError,
    VtryonError,
)
from vtryon_services.engine.batching.costs import StepCosts
from vtryon_services.engine.batching.scheduling import QueuedRequest, SchedulingPolicy
from vtryon_services.engine.plan import QueuePosition, SamplingRequest
from vtryon_services.engine.sampler import Given, Sample, Sampler

_log = logging.getLogger("vtryon.batcher")
# A request that was admitted so long ago and has sent no tensors counts in the queue's length, but
# no longer in the waits that others are refused for.
_TENSORS_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Stepped:
    """A completed step of a request.

    Attributes:
        step: number of completed steps; seconds: duration of the batch's step.

    Shapes:
        tokens, x0: (target tokens, 64), the state and its x0 estimate. Never modified afterwards,
            so that previews and resume points can be read from them concurrently.
    """

    step: int
    seconds: float
    tokens: torch.Tensor
    x0: torch.Tensor


class Sink(Protocol):
    """Where a request's events go. Called by the batcher's thread, and must not block it."""

    def on_queued(self, position: QueuePosition) -> None:
        """It waits, and its place has changed."""
        ...

    def on_step(self, step: Stepped) -> None:
        """A step is done."""
        ...

    def on_end(self, error: VtryonError | None) -> None:
        """It is over; with no error, the last step's tokens are the result."""
        ...


@dataclass(slots=True)
class BatcherCounts:
    """Counters of the batcher since its creation."""

    steps: int = 0
    rows: int = 0
    finished: int = 0
    cancelled: int = 0
    expired: int = 0
    refused: int = 0
    preempted: int = 0
    wasted_steps: int = 0


@dataclass(slots=True, eq=False)
class BatchedRequest:
    """A request in the batcher, from its admission to its end."""

    entry: QueuedRequest
    request: SamplingRequest
    batcher: StepBatcher
    given: Given | None = None
    sink: Sink | None = None
    sample: Sample | None = None
    position: QueuePosition | None = None
    over: bool = False

    def begin(self, given: Given, sink: Sink) -> None:
        """Hand in the tensors: from now on it is stepped when its turn comes."""
        self.batcher.start(self, given, sink)

    def cancel(self) -> None:
        """Leave; no step begins afterwards. Does nothing to a request that is over."""
        self.batcher.leave(self)

    @property
    def steps_done(self) -> int:
        """How many steps were done here."""
        return 0 if self.sample is None else self.sample.step - self.request.plan.first_step


class StepBatcher:
    """Steps up to `slots` requests at once, whatever their sizes, steps and prompts.

    `executor` has one thread, which owns the model: a step is one task on it, so that other work of
    the same thread (encoding, decoding) comes in between. Sinks are called outside the lock.
    """

    def __init__(
        self,
        sampler: Sampler,
        executor: Executor,
        *,
        slots: int = 16,
        max_waiting: int = 256,
        ageing_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = BatcherCounts()
        self.costs = StepCosts()
        self.slots = slots
        self._sampler = sampler
        self._executor = executor
        self._max_waiting = max_waiting
        self._clock = clock
        self._order = SchedulingPolicy(slots, ageing_seconds)
        self._lock = threading.Lock()
        self._requests: dict[QueuedRequest, BatchedRequest] = {}
        self._running: list[QueuedRequest] = []
        self._ticking = False
        self._drained = False

    @property
    def running(self) -> int:
        """How many requests have a slot."""
        with self._lock:
            return sum(entry in self._requests for entry in self._running)

    @property
    def waiting(self) -> int:
        """How many are admitted and have no slot."""
        with self._lock:
            return len(self._requests.keys() - self._running)

    def admit(self, request: SamplingRequest) -> BatchedRequest:
        """Promise a request its turn, or refuse it at once.

        Raises:
            OverloadedError: the queue is full, or the deadline can't be met.
            UnavailableError: the batcher drains.
        """
        with self._lock:
            if self._drained:
                raise _going_away()
            now = self._clock()
            entry = _entry(request, now)
            try:
                self._check_room(request, entry, now)
            except OverloadedError:
                self.counts.refused += 1
                raise
            batched = BatchedRequest(entry, request, self)
            self._requests[entry] = batched
            return batched

    def start(self, batched: BatchedRequest, given: Given, sink: Sink) -> None:
        """Start a request with its tensors; see `BatchedRequest.begin`."""
        with self._lock:
            if batched.over:
                return
            batched.given, batched.sink = given, sink
            if not self._ticking:
                self._ticking = True
                self._executor.submit(self._tick)

    def leave(self, batched: BatchedRequest) -> None:
        """Remove a request; see `BatchedRequest.cancel`."""
        with self._lock:
            if not batched.over:
                self.counts.cancelled += 1
                self._forget(batched, wasted=True)

    def begin_drain(self) -> Future[None]:
        """Hand every request over: each ends as UNAVAILABLE, after the step under way."""
        with self._lock:
            self._drained = True
            requests = list(self._requests.values())
        # On the model's thread, so that no step is half done.
        return self._executor.submit(self._end_all, requests)

    def _check_room(self, request: SamplingRequest, entry: QueuedRequest, now: float) -> None:
        position, _ = self._order.starts(list(self._requests), self._running, entry, now)
        others = self._expected(now)
        _, steps = self._order.starts(others, self._running, entry, now)
        step_seconds = self._step_seconds([*others, entry])
        wait = None if step_seconds is None else steps * step_seconds
        if position >= self.slots + self._max_waiting:
            raise OverloadedError(
                f"{self._max_waiting} requests are waiting, which is the limit; try again later",
                metadata={"max_waiting": str(self._max_waiting)},
                retry_after_seconds=max(0.05, wait or 0.0),
            )
        if step_seconds is None or wait is None:
            return
        late = now + wait + entry.remaining * step_seconds - request.deadline
        if late > 0:
            left = request.deadline - now
            raise OverloadedError(
                f"the deadline is in {left:.3g} s; {position} requests go first, "
                f"and {entry.remaining} steps would be done in {left + late:.3g} s",
                reason=Reason.DEADLINE_UNREACHABLE,
                metadata={"position": str(position)},
                retry_after_seconds=max(0.05, min(late, wait)),
            )

    def _expected(self, now: float) -> list[QueuedRequest]:
        """Return the requests that count in predicted waits."""
        return [
            entry
            for entry, batched in self._requests.items()
            if batched.given is not None or now - entry.arrived < _TENSORS_SECONDS
        ]

    def _step_seconds(self, entries: Sequence[QueuedRequest]) -> float | None:
        """Predict a step of the batch that these make: the first of them, if there are more."""
        share = min(1.0, self.slots / len(entries))
        rows = sum(entry.rows for entry in entries) * share
        tokens = sum(entry.rows * entry.tokens for entry in entries) * share
        return self.costs.seconds(max(1, round(rows)), tokens / rows)

    def _tick(self) -> None:
        """Run one step of the scheduled requests, and schedule the next."""
        with self._lock:
            now = self._clock()
            expired = self._expire(now)
            batch = self._choose(now)
            moved = self._changed_positions(now)
            self._ticking = bool(batch)
        for batched in expired:
            _end(batched, _out_of_time(batched))
        for batched, position in moved:
            if batched.sink is not None:
                batched.sink.on_queued(position)
        if batch:
            self._step([batched for batched in batch if self._is_laid_out(batched)])
            self._executor.submit(self._tick)

    def _choose(self, now: float) -> list[BatchedRequest]:
        ready = [entry for entry, batched in self._requests.items() if batched.given is not None]
        before = [entry for entry in self._running if entry in self._requests]
        self._running = self._order.pick(ready, before, now)
        chosen = set(self._running)
        self.counts.preempted += sum(entry not in chosen for entry in before)
        return [self._requests[entry] for entry in self._running]

    def _changed_positions(self, now: float) -> list[tuple[BatchedRequest, QueuePosition]]:
        """Return the queue positions that have changed."""
        running = set(self._running)
        if len(self._requests) == len(running):
            return []
        ranked = self._order.ranked(list(self._requests), self._running, now)
        step_seconds = self._step_seconds(ranked)
        free = [0] * self.slots
        moved = []
        for position, entry in enumerate(ranked):
            batched = self._requests[entry]
            changed = batched.position is None or batched.position.position != position
            if entry not in running and batched.given is not None and changed:
                seconds = None if step_seconds is None else free[0] * step_seconds
                batched.position = QueuePosition(position, seconds)
                moved.append((batched, batched.position))
            heapq.heapreplace(free, free[0] + entry.remaining)
        return moved

    def _is_laid_out(self, batched: BatchedRequest) -> bool:
        """Lay out a request's tokens, at its first step."""
        if batched.sample is None and batched.given is not None:
            try:
                batched.sample = self._sampler.begin(batched.request.plan, batched.given)
            except Exception as error:
                self._fail(batched, error)
                return False
        return True

    def _step(self, batch: Sequence[BatchedRequest]) -> None:
        """Advance a batch; after a failure, retry separately so that only failing requests fail."""
        samples = [batched.sample for batched in batch if batched.sample is not None]
        started = self._clock()
        try:
            passes = self._sampler.advance(samples)
        except Exception as error:
            if len(batch) == 1:
                self._fail(batch[0], error)
            else:
                for batched in batch:
                    self._step([batched])
            return
        seconds = self._clock() - started
        with self._lock:
            self.counts.steps += 1
            for one in passes:
                self.counts.rows += one.rows
                self.costs.observe(one.rows, one.tokens, one.seconds)
            finished = [batched for batched in batch if self._count_step(batched)]
        for batched in batch:
            _tell(batched, seconds)
        for batched in finished:
            _end(batched, None)

    def _count_step(self, batched: BatchedRequest) -> bool:
        """Count a step; true if it was the last, and the request is over now."""
        batched.entry.remaining -= 1
        if batched.over or batched.sample is None or not batched.sample.finished:
            return False
        self.counts.finished += 1
        self._forget(batched, wasted=False)
        return True

    def _expire(self, now: float) -> list[BatchedRequest]:
        expired = [
            batched
            for batched in self._requests.values()
            if batched.request.deadline <= now and batched.given is not None
        ]
        for batched in expired:
            self.counts.expired += 1
            self._forget(batched, wasted=True)
        return expired

    def _fail(self, batched: BatchedRequest, error: Exception) -> None:
        with self._lock:
            known = not batched.over
            if known:
                self._forget(batched, wasted=True)
        if known and isinstance(error, VtryonError):
            _end(batched, error)
        elif known:
            _log.error("a step failed", exc_info=error)
            _end(batched, StageError("sampling failed; its log has the cause"))

    def _end_all(self, requests: Sequence[BatchedRequest]) -> None:
        with self._lock:
            known = [batched for batched in requests if not batched.over]
            for batched in known:
                self._forget(batched, wasted=False)
        for batched in known:
            _end(batched, _going_away())

    def _forget(self, batched: BatchedRequest, *, wasted: bool) -> None:
        batched.over = True
        self._requests.pop(batched.entry, None)
        if wasted:
            self.counts.wasted_steps += batched.steps_done


def _entry(request: SamplingRequest, now: float) -> QueuedRequest:
    steps = request.plan.steps - request.plan.first_step
    size = (steps, 2 if request.guided else 1, request.tokens)
    return QueuedRequest.new(request.priority, request.tenant, request.deadline, size, now)


def _tell(batched: BatchedRequest, seconds: float) -> None:
    sample = batched.sample
    if sample is not None and sample.x0 is not None and batched.sink is not None:
        batched.sink.on_step(Stepped(sample.step, seconds, sample.tokens, sample.x0))


def _end(batched: BatchedRequest, error: VtryonError | None) -> None:
    if batched.sink is not None:
        batched.sink.on_end(error)


def _out_of_time(batched: BatchedRequest) -> DeadlineError:
    plan = batched.request.plan
    done = plan.first_step + batched.steps_done
    return DeadlineError(
        f"out of time after {done} of {plan.steps} steps", metadata={"completed_steps": str(done)}
    )


def _going_away() -> UnavailableError:
    return UnavailableError("the sampler is going away", reason=Reason.SHUTTING_DOWN)
