"""The whole mesh with its arithmetic in Triton: the same pictures, events and errors."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from pathlib import Path

import numpy as np
import pytest
from tests.on_triton.conftest import IN_TRITON
from tests.support.triton import cpu_seconds, kill, models_of, triton_server

import vtryon
from vtryon import Preview, StepFinished
from vtryon.embedded import embedded_mesh

MIXES = [
    {"steps": 4, "seed": 1},
    {"steps": 3, "seed": 2, "true_cfg_scale": 3.0, "negative_prompt": "tucked in"},
    {"steps": 3, "seed": 2, "true_cfg_scale": 3.0, "negative_prompt": ""},
    {"steps": 4, "seed": 3, "width": 64, "height": 96, "format": vtryon.ImageFormat.WEBP},
    {"steps": 5, "seed": 4, "profile": vtryon.Profile.COMFY},
    {"steps": 4, "seed": 5, "strength": 0.6},
    {"seed": 6, "sigmas": (1.0, 0.7, 0.2)},
]


async def draw(client: vtryon.Client, example, mix: dict) -> tuple[np.ndarray, list[str]]:
    run = client.try_on(example.person, example.garment, example.prompt, **mix)
    kinds = [type(event).__name__ async for event in run]
    return (await run).picture.to_numpy().astype(int), kinds


async def test_mixed_requests_at_once_are_what_the_torch_backend_draws(
    client, on_triton, example
) -> None:
    expected = [await draw(client, example, mix) for mix in MIXES]
    found = await asyncio.gather(*(draw(on_triton, example, mix) for mix in MIXES * 2))
    for (one, kinds), (other, others) in zip(expected * 2, found, strict=True):
        assert np.abs(one - other).max() <= 1
        for kind in set(kinds) - {"Queued", "Preview"}:  # those depend on who else is there
            assert others.count(kind) == kinds.count(kind)
        assert (others[0], others[-1]) == ("Accepted", "Finished")


async def test_every_stage_says_which_model_computes(client, on_triton, example) -> None:
    here = await client.try_on(example.person, example.garment, steps=1)
    there = await on_triton.try_on(example.person, example.garment, steps=1)
    for stage, accepted in here.stages.items():
        assert accepted.model_digest
        assert there.stages[stage].model_digest == accepted.model_digest


async def test_resume_points_come_or_are_said_not_to(on_triton, triton_mesh, example) -> None:
    points, unused = 0, ()
    run = on_triton.try_on(example.person, example.garment, steps=4, resume_every=2)
    async for event in run:
        points += isinstance(event, vtryon.events.ResumeChunk)
    unused = [one.field for one in (await run).unused_options]
    assert (points > 0) != ("resume_every" in unused)


async def test_every_step_and_preview_comes_as_it_is_made(on_triton, example) -> None:
    steps, previews = [], []
    async for event in on_triton.try_on(example.person, example.garment, steps=6, seed=1):
        if isinstance(event, StepFinished):
            steps.append(event.step)
        if isinstance(event, Preview):
            previews.append(event.picture.size)
    assert steps == list(range(1, 7))
    assert previews
    assert set(previews) == {(12, 16)}


async def test_what_the_pictures_became_is_told(client, on_triton, example) -> None:
    here = await client.try_on(example.person, example.garment, steps=1)
    there = await on_triton.try_on(example.person, example.garment, steps=1)
    assert there.fits == here.fits
    assert [fit.subject for fit in there.fits] == ["person", "garment"]


async def test_the_ledger_sums_to_the_wall_time(on_triton, example) -> None:
    for steps in (1, 4):
        ledger = (await on_triton.try_on(example.person, example.garment, steps=steps)).ledger
        critical = [hop for hop in ledger.hops if hop.critical]
        assert sum(hop.total_seconds for hop in critical) == pytest.approx(ledger.wall_seconds)
        assert [hop.stage for hop in ledger.hops] == list(vtryon.Stage)
        assert all(hop.compute_seconds > 0 for hop in ledger.hops[:-1])


async def test_several_garments_and_none(client, on_triton, example) -> None:
    for garments in ([], [example.garment] * 3):
        drawn = [
            (await one.try_on(example.person, garments, steps=2, seed=1)).picture.to_numpy()
            for one in (client, on_triton)
        ]
        assert np.abs(drawn[0].astype(int) - drawn[1]).max() <= 1


async def test_errors_are_those_of_the_torch_backend(client, on_triton, example) -> None:
    broken = b"\x89PNG\r\n\x1a\n" + b"x" * 100
    for pictures in [(broken, example.garment), (example.person, b"nothing")]:
        raised = []
        for one in (client, on_triton):
            with pytest.raises(vtryon.RequestError) as caught:
                await one.try_on(*pictures, steps=1)
            raised.append(caught.value.reason)
            assert caught.value.stage in {"latent-encoder", "text-encoder"}  # whoever is first
        assert raised[0] == raised[1]


async def test_a_request_that_is_left_takes_no_further_step(on_triton, triton, example) -> None:
    pid = models_of(triton)["sampling"]
    for _ in range(3):
        async for event in on_triton.try_on(example.person, example.garment, steps=200):
            if isinstance(event, StepFinished) and event.step == 3:
                break
        await asyncio.sleep(0.3)
        before = cpu_seconds(pid)
        await asyncio.sleep(0.5)
        assert cpu_seconds(pid) - before < 0.1


async def test_requests_left_at_random_steps_free_their_slots(
    on_triton, triton, example, chaos: bool
) -> None:
    """Twenty; a hundred with `--chaos`."""
    chance = random.Random(0)

    async def leave(at: int) -> None:
        run = on_triton.try_on(example.person, example.garment, steps=200, previews=False)
        async for event in run:
            if isinstance(event, StepFinished) and event.step >= at:
                return

    for _ in range(10 if chaos else 2):
        await asyncio.gather(*(leave(chance.randrange(1, 9)) for _ in range(10)))
    await asyncio.sleep(0.3)
    pid = models_of(triton)["sampling"]
    before = cpu_seconds(pid)
    await asyncio.sleep(0.5)
    assert cpu_seconds(pid) - before < 0.1
    small = {"steps": 1, "width": 32, "height": 48}
    await asyncio.gather(
        *(on_triton.try_on(example.person, example.garment, **small) for _ in range(16))
    )


async def test_no_step_begins_after_the_deadline(on_triton, triton, example) -> None:
    pid = models_of(triton)["sampling"]
    started = time.monotonic()
    with pytest.raises((vtryon.DeadlineError, vtryon.OverloadedError)):
        await on_triton.try_on(example.person, example.garment, steps=200, timeout_seconds=0.5)
    assert time.monotonic() - started < 1
    await asyncio.sleep(0.3)
    before = cpu_seconds(pid)
    await asyncio.sleep(0.5)
    assert cpu_seconds(pid) - before < 0.1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("topology", IN_TRITON)
async def test_a_killed_server_is_gone_on_without_and_leaves_nothing(
    triton, repository, example, tmp_path, topology: str
) -> None:
    with triton_server(repository, tmp_path / "second.log") as second:
        models = models_of(second)
        assert set(models) == {"latent_encoder", "text_encoder", "sampling", "decoding"}
        urls = f"{second.grpc},{triton.grpc}"
        async with (
            embedded_mesh(triton_url=urls, **IN_TRITON[topology]) as target,
            vtryon.Client(target) as client,
        ):
            stepping = [asyncio.Event() for _ in range(4)]

            async def one(seed: int) -> tuple[bytes, list[int]]:
                run = client.try_on(
                    example.person, example.garment, steps=60, seed=seed, timeout_seconds=240
                )
                steps = []
                async for event in run:
                    if isinstance(event, StepFinished):
                        steps.append(event.step)
                        stepping[seed].set()
                return (await run).picture.to_numpy().astype(int), steps

            whole = [await one(seed) for seed in range(4)]
            for one_steps in stepping:
                one_steps.clear()
            runs = asyncio.gather(*(one(seed) for seed in range(4)))
            await asyncio.gather(*(one_steps.wait() for one_steps in stepping))
            kill(second)
            for (drawn, steps), (expected, _) in zip(await runs, whole, strict=True):
                assert np.abs(drawn - expected).max() <= 1
                assert all(earlier < later for earlier, later in itertools.pairwise(steps))
                assert steps[-1] == 60
    async with asyncio.timeout(60):
        while any(Path(f"/proc/{pid}").exists() and not is_zombie(pid) for pid in models.values()):
            await asyncio.sleep(0.05)
    assert not list(Path("/dev/shm").glob(f"vtryon_*_{second.grpc.rpartition(':')[2]}_*"))


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_many_requests_leave_no_region_and_no_process_behind(
    on_triton, triton, example, chaos: bool
) -> None:
    """Forty; two hundred with `--chaos`."""

    def regions() -> int:
        port = triton.grpc.rpartition(":")[2]
        return len(list(Path("/dev/shm").glob(f"vtryon_*_{port}_*")))

    before, models = regions(), models_of(triton)
    small = {"steps": 1, "width": 32, "height": 48, "previews": False}
    for _ in range(20 if chaos else 4):
        runs = [on_triton.try_on(example.person, example.garment, **small) for _ in range(10)]
        await asyncio.gather(*runs)
    assert regions() == before == 4
    assert models_of(triton) == models
