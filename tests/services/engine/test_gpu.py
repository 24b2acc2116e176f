"""A GPU draws what the CPU draws, alone and in company. Skipped where there is none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest
import torch

import vtryon
from vtryon.embedded import embedded_mesh

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture(scope="module", params=["fp32", "bf16", "fp16"])
async def on_gpu(request) -> AsyncIterator[tuple[str, vtryon.Client]]:
    dtype = request.param
    async with embedded_mesh(device="cuda", dtype=dtype) as target, vtryon.Client(target) as client:
        yield dtype, client


async def draw(client: vtryon.Client, example, **wanted) -> np.ndarray:
    result = await client.try_on(example.person, example.garment, example.prompt, **wanted)
    return result.picture.to_numpy().astype(np.int16)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
async def test_a_picture_is_that_of_the_cpu(client, on_gpu, example, guidance: float) -> None:
    dtype, gpu = on_gpu
    wanted = {"seed": 7, "steps": 4, "true_cfg_scale": guidance, "negative_prompt": "blurry"}
    ours, theirs = [await draw(one, example, **wanted) for one in (client, gpu)]
    difference = np.abs(ours - theirs)
    if dtype == "fp32":
        assert difference.max() <= 1
    else:
        assert difference.mean() < 4


@pytest.mark.timeout(300)
async def test_company_changes_nothing(on_gpu, example) -> None:
    dtype, gpu = on_gpu
    mix = [
        {"seed": 1, "steps": 4},
        {"seed": 2, "steps": 7, "width": 96, "height": 64},
        {"seed": 3, "steps": 3, "true_cfg_scale": 3.0, "negative_prompt": "x"},
        {"seed": 4, "steps": 5, "numerics": vtryon.Numerics(profile=vtryon.Profile.COMFY)},
    ]
    alone = [await draw(gpu, example, **wanted) for wanted in mix]
    together = await asyncio.gather(*(draw(gpu, example, **wanted) for wanted in mix))
    for one, other in zip(alone, together, strict=True):
        difference = np.abs(one - other)
        assert difference.max() <= 1 if dtype == "fp32" else difference.mean() < 2


@pytest.mark.timeout(300)
async def test_a_seed_draws_the_same_picture_again(on_gpu, example) -> None:
    _, gpu = on_gpu
    wanted = {"seed": 5, "steps": 6}
    whole = await draw(gpu, example, **wanted)
    again = await draw(gpu, example, **wanted)
    assert np.abs(whole - again).max() == 0


@pytest.mark.timeout(300)
async def test_a_cancel_frees_the_gpu_at_the_next_step(on_gpu, example) -> None:
    _, gpu = on_gpu
    await draw(gpu, example, seed=1, steps=2)
    run = gpu.try_on(example.person, example.garment, example.prompt, seed=9, steps=200)
    async for event in run:
        if isinstance(event, vtryon.StepFinished) and event.step == 3:
            break
    run.cancel()
    started = time.monotonic()
    await draw(gpu, example, seed=1, steps=2)
    assert time.monotonic() - started < 5


@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore:TensorFloat32")  # we want fp32 as it is
async def test_compiled_blocks_draw_the_same_picture(client, example) -> None:
    async with (
        embedded_mesh(device="cuda", compiled=True) as target,
        vtryon.Client(target) as compiled,
    ):
        ours, theirs = [await draw(one, example, seed=3, steps=4) for one in (client, compiled)]
    assert np.abs(ours - theirs).max() <= 1
