"""Requests that share the sampler's batch: nobody's picture depends on who else was in it."""

from __future__ import annotations

import asyncio

import numpy as np

import vtryon
from vtryon import StepFinished


async def test_pictures_in_company_are_those_drawn_alone(client, example) -> None:
    mixes = [
        {"steps": 4, "seed": 0},
        {"steps": 2, "seed": 1, "width": 64, "height": 96},
        {"steps": 6, "seed": 2, "true_cfg_scale": 3.0, "negative_prompt": "tucked in"},
        {"steps": 3, "seed": 3, "priority": vtryon.Priority.BATCH},
        {"steps": 5, "seed": 4, "numerics": vtryon.Numerics(profile=vtryon.Profile.COMFY)},
        {"steps": 1, "seed": 5},
    ]

    async def draw(number: int) -> np.ndarray:
        pictures = (example.person, example.garment)
        words = f"{example.prompt} {'really ' * number}"
        result = await client.try_on(*pictures, words, **mixes[number])
        return result.picture.to_numpy().astype(int)

    async def leave(number: int) -> None:
        run = client.try_on(example.person, example.garment, "x", steps=50, seed=number)
        async for event in run:
            if isinstance(event, StepFinished) and event.step == number:
                break

    alone = [await draw(number) for number in range(len(mixes))]
    together = asyncio.gather(*(draw(number) for number in range(len(mixes))))
    await asyncio.gather(*(leave(number) for number in range(1, 6)))
    for one, other in zip(alone, await together, strict=True):
        assert np.abs(one - other).max() <= 1


async def test_a_slow_reader_gets_every_step_and_holds_nobody_up(client, example) -> None:
    """While it reads nothing, who shares its batch gets every step and the same picture."""

    async def quick() -> tuple[list[int], np.ndarray]:
        run = client.try_on(example.person, example.garment, "x", steps=4, seed=2)
        steps = [event.step async for event in run if isinstance(event, StepFinished)]
        return steps, (await run).picture.to_numpy().astype(int)

    _, alone = await quick()
    slow = client.try_on(example.person, example.garment, "x", steps=200, seed=1)
    steps = []
    async for event in slow:
        if isinstance(event, StepFinished):
            steps.append(event.step)
            if event.step == 1:
                for _ in range(3):
                    seen, beside = await quick()
                    assert seen == [1, 2, 3, 4]
                    assert np.abs(beside - alone).max() <= 1
    assert steps == list(range(1, 201))
