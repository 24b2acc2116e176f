"""Admission, leaving, faults: what the batcher promises besides the picture."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
import torch
from tests.support.batching import ManualExecutor, Recorder, random_sampler

from vtryon.errors import DeadlineError, OverloadedError, Reason, StageError, UnavailableError
from vtryon.types import Priority
from vtryon_services.engine.batching.batcher import BatchedRequest, StepBatcher
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.plan import SamplingPlan, SamplingRequest
from vtryon_services.engine.sampler import Given, Sampler


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A batcher, its thread and its clock, all in the test's hands."""

    def __init__(
        self, slots: int = 2, max_waiting: int = 3, sampler: Sampler | None = None
    ) -> None:
        self.executor, self.clock = ManualExecutor(), Clock()
        self.sampler = sampler or random_sampler()
        self.batcher = StepBatcher(
            self.sampler, self.executor, slots=slots, max_waiting=max_waiting, clock=self.clock
        )

    def request(self, steps: int = 4, seconds: float = inf, **named: object) -> SamplingRequest:
        numerics = resolve(None)
        sigmas = self.sampler.sigmas(numerics, steps, 32, 32, 1.0)
        plan = SamplingPlan(numerics, 32, 32, sigmas, seed=1)
        return replace(SamplingRequest(plan, 11, False, deadline=self.clock.now + seconds), **named)

    def enter(self, request: SamplingRequest | None = None) -> tuple[BatchedRequest, Recorder]:
        batched, recorder = self.batcher.admit(request or self.request()), Recorder()
        generator = torch.Generator().manual_seed(0)
        given = Given(
            torch.randn((3, 32), generator=generator),
            None,
            [torch.randn((4, 4, 4), generator=generator)],
        )
        batched.begin(given, recorder)
        return batched, recorder

    def learn(self, seconds_per_step: float) -> None:
        for rows in (1, 2):
            self.batcher.costs.observe(rows, rows * 11, seconds_per_step)


def test_the_queue_is_bounded_and_says_when_to_come_back() -> None:
    bench = Bench(slots=1, max_waiting=2)
    bench.learn(0.5)
    for _ in range(3):
        bench.enter()
    with pytest.raises(OverloadedError, match="2 requests are waiting") as caught:
        bench.enter()
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.retry_after_seconds == pytest.approx(3 * 4 * 0.5)
    assert bench.batcher.counts.refused == 1


def test_a_deadline_that_cannot_be_met_is_refused_at_the_interface() -> None:
    bench = Bench(slots=1, max_waiting=9)
    bench.learn(0.5)
    bench.enter(bench.request(seconds=2.5))
    bench.enter(bench.request(seconds=4.1))
    with pytest.raises(OverloadedError, match=r"2 requests go first") as caught:
        bench.enter(bench.request(seconds=5.0))
    assert caught.value.reason is Reason.DEADLINE_UNREACHABLE
    assert caught.value.retry_after_seconds == pytest.approx(1.0)


def test_calls_without_tensors_fill_the_queue_but_refuse_no_deadline() -> None:
    """One whose tensors are due any moment still counts."""
    bench = Bench(slots=1, max_waiting=9)
    bench.learn(0.5)
    for number in range(1, 9):
        bench.batcher.admit(bench.request(seconds=2.1 * number))
    with pytest.raises(OverloadedError, match="8 requests go first"):
        bench.enter(bench.request(seconds=17.0))
    bench.clock.now += 2.0
    bench.enter(bench.request(seconds=17.0))
    bench.enter()
    with pytest.raises(OverloadedError) as caught:
        bench.enter()
    assert caught.value.reason is Reason.QUEUE_FULL


def test_a_waiting_request_is_told_its_place_and_its_time_again_when_they_change() -> None:
    bench = Bench(slots=1)
    bench.learn(0.5)
    bench.enter()
    _, waiting = bench.enter()
    bench.executor.run_all()
    assert [one.position for one in waiting.positions] == [1]
    assert waiting.positions[0].expected_seconds == pytest.approx(2.0)
    assert waiting.over


def test_leaving_frees_the_slot_before_the_next_step_and_counts_what_was_wasted() -> None:
    bench = Bench(slots=1)
    first, one = bench.enter()
    _, other = bench.enter()
    for _ in range(2):
        bench.executor.run_one()
    first.cancel()
    first.cancel()
    bench.executor.run_one()
    assert (len(one.steps), len(other.steps)) == (2, 1)
    assert not one.over
    assert bench.batcher.counts.wasted_steps == 2
    assert bench.batcher.counts.cancelled == 1


def test_no_step_begins_after_the_deadline() -> None:
    bench = Bench()
    _, late = bench.enter(bench.request(seconds=1.0))
    bench.executor.run_one()
    bench.clock.now += 1.0
    bench.executor.run_all()
    assert isinstance(late.error, DeadlineError)
    assert late.error.metadata == {"completed_steps": "1"}
    assert len(late.steps) == 1
    assert bench.batcher.counts.expired == 1


def test_a_paused_request_keeps_its_latents_and_ends_as_if_alone() -> None:
    bench = Bench(slots=1)
    batched, patient = bench.enter(bench.request(priority=Priority.BATCH))
    bench.executor.run_one()
    _, urgent = bench.enter()
    bench.executor.run_all()
    assert urgent.over
    assert patient.over
    assert bench.batcher.counts.preempted == 1
    assert batched.sample is not None
    alone, recorder = Bench().enter()
    alone.batcher._executor.run_all()  # type: ignore[attr-defined]
    assert recorder.over
    assert alone.sample is not None
    torch.testing.assert_close(batched.sample.latents(), alone.sample.latents())


class _Poisoned(Sampler):
    """Fails whenever seed 13 takes part."""

    def advance(self, samples, rows_at_once=64):  # type: ignore[no-untyped-def]
        if any(sample.plan.seed == 13 for sample in samples):
            raise RuntimeError("this row is bad")
        return super().advance(samples, rows_at_once)


def test_a_request_that_fails_takes_nobody_with_it() -> None:
    plain = random_sampler()
    poisoned = object.__new__(_Poisoned)
    poisoned.__dict__.update(plain.__dict__)
    bench = Bench(sampler=poisoned)
    request = bench.request()
    _, bad = bench.enter(replace(request, plan=replace(request.plan, seed=13)))
    _, good = bench.enter()
    bench.executor.run_all()
    assert isinstance(bad.error, StageError)
    assert "bad" not in bad.error.message
    assert good.error is None
    assert len(good.steps) == 4


def test_draining_hands_every_request_over() -> None:
    bench = Bench(slots=1)
    _, running = bench.enter()
    _, waiting = bench.enter()
    bench.executor.run_one()
    draining = bench.batcher.begin_drain()
    bench.executor.run_all()
    assert draining.done()
    for recorder in (running, waiting):
        assert isinstance(recorder.error, UnavailableError)
        assert recorder.error.reason is Reason.SHUTTING_DOWN
    with pytest.raises(UnavailableError):
        bench.enter()
