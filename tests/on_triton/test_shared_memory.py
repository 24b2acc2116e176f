"""Big inputs go through shared memory, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio as grpcclient
from tenacity import AsyncRetrying, stop_after_delay, wait_fixed

import vtryon
from vtryon.embedded import embedded_mesh
from vtryon.errors import UnavailableError
from vtryon_services.triton.client import TritonPool
from vtryon_services.triton.contract import Model

LATENTS = np.random.default_rng(0).normal(size=(16, 16, 12)).astype(np.float32)


def regions() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("vtryon_????????????????")}


@pytest.fixture
async def pool(triton):
    pool = TritonPool([triton.grpc], 1)
    yield pool
    await pool.close()
    assert not regions()


async def decode(pool: TritonPool) -> bytes:
    return (await pool.infer(Model.DECODING, {"LATENTS": LATENTS}))["PICTURE"].tobytes()


async def test_both_ways_give_the_same_and_regions_are_used_again(pool, triton) -> None:
    wire = TritonPool([triton.grpc], 0)
    expected = await decode(wire)
    assert not regions()
    for _ in range(5):
        assert await decode(pool) == expected
        assert len(regions()) == 1
    await asyncio.gather(*(decode(pool) for _ in range(4)))
    assert len(regions()) <= 4
    await wire.close()


async def test_a_whole_mesh_draws_by_it(triton, client, example) -> None:
    here = await client.try_on(example.person, example.garment, steps=4, seed=1)
    given = {"backend": "triton", "triton_url": triton.grpc, "triton_shared_memory_bytes": 1}
    async with embedded_mesh(**given) as target, vtryon.Client(target) as other:
        runs = [other.try_on(example.person, example.garment, steps=4, seed=1) for _ in range(3)]
        for result in await asyncio.gather(*runs):
            difference = result.picture.to_numpy().astype(int) - here.picture.to_numpy()
            assert np.abs(difference).max() <= 1
        assert regions()
    assert not regions()


async def test_a_server_that_forgot_them_is_told_anew(pool, triton) -> None:
    expected = await decode(pool)
    plain = grpcclient.InferenceServerClient(triton.grpc)
    # Triton answers a moment before it lets go of the inputs, and keeps their region until then.
    async for attempt in AsyncRetrying(wait=wait_fixed(0.05), stop=stop_after_delay(5)):
        with attempt:
            await plain.unregister_system_shared_memory()
    await plain.close()
    with pytest.raises(UnavailableError):  # the pipeline then makes another attempt
        await decode(pool)
    assert await decode(pool) == expected


async def test_a_server_that_cannot_see_them_is_sent_all_by_the_wire(pool, monkeypatch) -> None:
    [server] = pool._servers
    register = server.client.register_system_shared_memory

    async def elsewhere(name: str, key: str, size: int) -> None:
        await register(name, f"{key}_of_another_machine", size)

    monkeypatch.setattr(server.client, "register_system_shared_memory", elsewhere)
    await decode(pool)
    assert not regions()


async def test_where_there_is_no_room_all_goes_by_the_wire(pool, monkeypatch) -> None:
    """A container has 64 MiB for it, and writing past them would be the process's end."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        await decode(pool)
        assert not regions()
    await decode(pool)
    assert regions()


async def test_what_a_request_left_is_not_written_to_at_once(pool, monkeypatch) -> None:
    [server] = pool._servers
    infer, sent = server.client.infer, asyncio.Event()

    async def tell_and_infer(*given, **named):
        sent.set()
        return await infer(*given, **named)

    monkeypatch.setattr(server.client, "infer", tell_and_infer)
    task = asyncio.create_task(decode(pool))
    await sent.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await decode(pool)
    assert len(regions()) == 2
