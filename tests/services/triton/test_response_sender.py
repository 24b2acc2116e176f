"""A caller of the Triton model who leaves frees the slot: no server is needed to see it."""

from __future__ import annotations

import threading
from math import inf

import torch
from tests.support.batching import ManualExecutor, Recorder, random_sampler

from vtryon.errors import RunCancelledError
from vtryon_services.engine.batching.batcher import StepBatcher
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.plan import SamplingPlan, SamplingRequest
from vtryon_services.engine.sampler import Given
from vtryon_services.triton.response_sender import ResponseSender


class Answers(Recorder):
    """Answers to a caller who leaves when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.abandoned = False
        self.stepped_once, self.told = threading.Event(), threading.Event()

    def on_step(self, step) -> None:
        super().on_step(step)
        self.stepped_once.set()

    def on_end(self, error) -> None:
        if not self.over:  # as the model's own answers, it says one last word
            super().on_end(error)
            self.told.set()


def test_a_request_whose_caller_has_left_takes_no_further_step() -> None:
    executor, sampler, answers, outbox = (
        ManualExecutor(),
        random_sampler(),
        Answers(),
        ResponseSender(),
    )
    batcher = StepBatcher(sampler, executor, slots=2, max_waiting=2)
    numerics = resolve(None)
    sigmas = sampler.sigmas(numerics, 50, 32, 32, 1.0)
    plan = SamplingPlan(numerics, 32, 32, sigmas, seed=1)
    batched = batcher.admit(SamplingRequest(plan, 11, False, deadline=inf))
    given = Given(torch.randn(3, 32), None, [torch.randn(4, 4, 4)])
    batched.begin(given, outbox.sink(batched, answers))
    while batched.steps_done < 2:
        executor.run_one()
    assert answers.stepped_once.wait(30)
    answers.abandoned = True
    assert answers.told.wait(30)
    assert isinstance(answers.error, RunCancelledError)
    done = batched.steps_done
    executor.run_all()
    assert batched.steps_done == done < 50
    assert (batcher.running, batcher.waiting) == (0, 0)
    outbox.close()
