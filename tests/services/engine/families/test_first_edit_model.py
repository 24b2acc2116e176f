"""The first edit model through every service: diffusers' picture, or a refusal before any work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import QwenImageEditPipeline
from PIL import Image
from tests.support.checkpoints import random_checkpoint
from tests.support.jobs import jobs_served
from tests.support.pictures import difference

import vtryon
from vtryon import Conditioning, SampleStart
from vtryon.errors import Reason, RequestError
from vtryon.jobs import JobState
from vtryon.types import Payload, PayloadKind, TryOnOptions, TryOnStart
from vtryon.wire.retry import RetryBudget
from vtryon_loadtests.diffusers_pipeline import diffusers_pipeline, draw, reference_area
from vtryon_services.backends.ensemble import TritonTryOn
from vtryon_services.backends.triton import TritonLatentEncoder, TritonSampling, TritonTextEncoder
from vtryon_services.engine.geometry import Geometry
from vtryon_services.pipeline.attempts import FailoverPolicy
from vtryon_services.pipeline.ensemble import EnsembleFlow
from vtryon_services.triton.contract import STAGE_MODELS

AREA = 96 * 128
GEOMETRY = Geometry(reference_area=AREA, max_target_area=512 * 512)
PROMPT = "a red shirt with long sleeves"
START = SampleStart(width=96, height=128, steps=2, seed=5, true_cfg_scale=1.0)


def picture(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 90).convert("RGB")


PERSON, GARMENT = picture(96, 128), picture(64, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("first") / "checkpoint"
    return random_checkpoint(folder, GEOMETRY, pipeline="QwenImageEditPipeline")


@pytest.fixture(scope="module")
async def first(folder) -> AsyncIterator[vtryon.Client]:
    async with (
        jobs_served(folder.parent, backend="torch", checkpoint=folder) as target,
        vtryon.Client(target) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def pipeline(folder):
    with reference_area(AREA):
        pipeline = diffusers_pipeline(folder)
        assert isinstance(pipeline, QwenImageEditPipeline)
        yield pipeline


@pytest.mark.parametrize("guidance", [None, 4.0])
@pytest.mark.parametrize("size", [(96, 128), (100, 100), (333, 150), (70, 160)])
async def test_the_mesh_draws_what_diffusers_draws(first, pipeline, size, guidance) -> None:
    person, seed = picture(*size), sum(size)
    wanted = {"prompt": PROMPT, "true_cfg_scale": guidance or 1.0}
    if guidance:
        wanted["negative_prompt"] = "blurry, striped"
    result = await first.try_on(person, steps=3, seed=seed, **wanted)
    width, height = result.picture.size
    wanted |= {"width": width, "height": height}
    theirs = draw(pipeline, [person], num_inference_steps=3, seed=seed, **wanted)
    assert difference(result.picture.to_pil(), theirs) <= 1


async def test_the_default_size_and_another_one_are_those_of_diffusers(first, pipeline) -> None:
    person, wanted = picture(333, 150), {"prompt": PROMPT, "true_cfg_scale": 1.0}
    for size in ({}, {"width": 144, "height": 112}):
        result = await first.try_on(person, steps=2, seed=8, **wanted, **size)
        theirs = draw(pipeline, [person], num_inference_steps=2, seed=8, **wanted, **size)
        assert difference(result.picture.to_pil(), theirs) <= 1


async def test_stages_and_a_job_draw_what_the_pipeline_draws(first) -> None:
    embeddings = await first.text_encoder.encode(PROMPT, [PERSON])
    references = await first.latent_encoder.encode([PERSON])
    latents = await first.sampling.sample(START, Conditioning(embeddings, references))
    alone = await first.decoding.decode(latents)
    options = {"steps": 2, "seed": 5, "true_cfg_scale": 1.0}
    result = await first.try_on(PERSON, prompt=PROMPT, **options)
    assert result.picture.data == alone.data
    job = await first.jobs.create(PERSON, prompt=PROMPT, **options)
    assert (await first.jobs.wait(job.id)).state is JobState.SUCCEEDED
    assert (await first.jobs.picture(job.id)).data == alone.data


async def test_a_garment_is_refused_by_the_pipeline_and_as_a_job(first) -> None:
    with pytest.raises(RequestError, match="exactly one picture; the request has 2") as caught:
        await first.try_on(PERSON, GARMENT, PROMPT)
    assert caught.value.reason is Reason.PAYLOAD_INVALID
    assert caught.value.stage in {"text-encoder", "latent-encoder"}
    job = await first.jobs.create(PERSON, [GARMENT], PROMPT)
    ended = await first.jobs.wait(job.id)
    assert (ended.state, ended.error.reason) == (JobState.FAILED, Reason.PAYLOAD_INVALID)
    assert "send the person alone" in ended.error.message


async def test_every_stage_refuses_another_number_before_it_accepts(first) -> None:
    embeddings = await first.text_encoder.encode(PROMPT, [PERSON])
    [reference] = await first.latent_encoder.encode([PERSON])
    two = Conditioning(embeddings, [reference, reference])
    for run in (
        first.text_encoder.encode(PROMPT, [PERSON, GARMENT]),
        first.text_encoder.encode(PROMPT, []),
        first.latent_encoder.encode([PERSON, GARMENT]),
        first.sampling.sample(START, two),
    ):
        events = []
        with pytest.raises(RequestError, match="exactly one picture") as caught:
            events += [event async for event in run]
        assert not events
        assert caught.value.reason is Reason.PAYLOAD_INVALID


async def test_triton_s_backends_and_its_ensemble_refuse_by_what_was_exported() -> None:
    described = {
        "digest": "",
        "channels": "16",
        "width": "128",
        "family": "QwenImageEditPipeline",
        "geometry": Geometry().model_dump_json(exclude={"condition_area", "preview"}),
        "scheduler": "{}",
    }
    pool: Any = None
    for backend in (TritonLatentEncoder, TritonTextEncoder, TritonSampling):
        with pytest.raises(RequestError, match="exactly one picture"):
            backend(pool, described).check_pictures(2)
    ensemble = TritonTryOn(pool, dict.fromkeys(STAGE_MODELS, described))
    payloads = [Payload(kind, 1) for kind in (PayloadKind.PERSON_IMAGE, PayloadKind.GARMENT_IMAGE)]
    nothing: Any = None
    flow = EnsembleFlow(
        ensemble,
        TryOnStart(options=TryOnOptions()),
        SimpleNamespace(payloads=payloads),  # type: ignore[arg-type]
        nothing,
        FailoverPolicy(RetryBudget(), 1, 0),
    )
    with pytest.raises(RequestError, match="exactly one picture"):
        await anext(flow.events())
