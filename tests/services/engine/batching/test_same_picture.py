"""A request's latents are those it has alone, whoever shares its batch, and whenever."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.batching import ManualExecutor, Recorder, random_sampler

from vtryon.types import GuidanceNorm, Numerics, Priority, Profile, RopeLayout
from vtryon_services.engine.batching.batcher import BatchedRequest, StepBatcher
from vtryon_services.engine.defaults import Guidance
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.plan import SamplingPlan, SamplingRequest
from vtryon_services.engine.sampler import Given

SIZES = [(32, 48), (64, 64), (96, 128)]
NUMERICS = [
    None,
    Numerics(profile=Profile.COMFY),
    Numerics(rope_layout=RopeLayout.COMFY, guidance_norm=GuidanceNorm.NONE),
]

requests = st.fixed_dictionaries(
    {
        "size": st.sampled_from(SIZES),
        "steps": st.integers(1, 5),
        "scale": st.sampled_from([1.0, 3.0]),
        "tokens": st.integers(1, 9),
        "references": st.integers(1, 2),
        "seed": st.integers(0, 3),
        "numerics": st.sampled_from(range(len(NUMERICS))),
        "priority": st.sampled_from(Priority),
        "joins": st.integers(0, 6),
        "leaves": st.none() | st.integers(0, 6),
    }
)


def prepare(request: dict) -> tuple[SamplingPlan, Given]:
    width, height = request["size"]
    numerics = resolve(NUMERICS[request["numerics"]])
    sampler = random_sampler()
    plan = SamplingPlan(
        numerics=numerics,
        width=width,
        height=height,
        sigmas=sampler.sigmas(numerics, request["steps"], width, height, 1.0),
        guidance=Guidance(request["scale"]),
        seed=request["seed"],
    )
    generator = torch.Generator().manual_seed(request["seed"] * 100 + request["tokens"])

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    given = Given(
        positive=draw(request["tokens"], 32),
        negative=draw(request["tokens"] + 2, 32) if request["scale"] > 1 else None,
        references=[draw(4, height // 8, width // 8) for _ in range(request["references"])],
    )
    return plan, given


@cache
def alone(**request: object) -> torch.Tensor:
    plan, given = prepare(request)
    sampler = random_sampler()
    sample = sampler.begin(plan, given)
    while not sample.finished:
        sampler.advance([sample])
    return sample.latents()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mix=st.lists(requests, min_size=1, max_size=6), slots=st.integers(1, 4))
def test_latents_are_those_of_the_request_alone(mix: list[dict], slots: int) -> None:
    executor = ManualExecutor()
    batcher = StepBatcher(random_sampler(), executor, slots=slots)
    entered: dict[int, tuple[BatchedRequest, Recorder]] = {}
    for tick in range(60):
        for number, request in enumerate(mix):
            if request["joins"] == tick:
                plan, given_ = prepare(request)
                sampling_request = SamplingRequest(
                    plan, 30, given_.negative is not None, request["priority"]
                )
                entered[number] = (batcher.admit(sampling_request), Recorder())
                entered[number][0].begin(given_, entered[number][1])
            if request["leaves"] == tick and number in entered:
                entered[number][0].cancel()
        executor.run_one()
    assert not executor.tasks
    for number, (batched, recorder) in entered.items():
        request = dict(mix[number])
        left = request.pop("leaves") is not None
        for name in ("joins", "priority"):
            request.pop(name)
        if recorder.over:
            assert recorder.error is None
            assert [step.step for step in recorder.steps] == list(range(1, request["steps"] + 1))
            assert batched.sample is not None
            torch.testing.assert_close(
                batched.sample.latents(), alone(**request), atol=1e-4, rtol=0
            )
        else:
            assert left
    assert batcher.counts.finished == sum(recorder.over for _, recorder in entered.values())
    assert batcher.waiting == batcher.running == 0


@pytest.mark.parametrize("step", [1, 2, 3])
def test_resumed_equals_uninterrupted(step: int) -> None:
    request = {
        "size": (64, 64),
        "steps": 4,
        "scale": 3.0,
        "tokens": 5,
        "references": 2,
        "seed": 1,
        "numerics": 0,
    }
    plan, given_ = prepare(request)
    sampler = random_sampler()
    first = sampler.begin(plan, given_)
    for _ in range(step):
        sampler.advance([first])
    later = SamplingPlan(
        plan.numerics, 64, 64, plan.sigmas, plan.seed, plan.guidance, first_step=step
    )
    resumed = sampler.begin(
        later, Given(given_.positive, given_.negative, given_.references, resume=first.latents())
    )
    while not resumed.finished:
        sampler.advance([resumed])
    assert torch.equal(resumed.latents(), alone(**request))
