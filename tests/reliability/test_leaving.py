"""F1, F2, F4, F10 and F24 as far as the slice goes: whoever leaves, the place comes free."""

import asyncio
import gc
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.support.pictures import png

import vtryon
from vtryon.embedded import embedded_mesh

PICTURE = png()
STEP_SECONDS = 0.02


async def place_is_free(client: vtryon.Client) -> None:
    """The mesh has one place: a request of one step is through long before a left one would be."""
    async with asyncio.timeout(2):
        await client.try_on(PICTURE, steps=1)


async def test_a_hundred_cancels_at_random_steps_leave_nothing_behind() -> None:
    async with (
        embedded_mesh(backend="scripted", places=1, scripted_seconds=STEP_SECONDS) as target,
        vtryon.Client(target) as client,
    ):
        await place_is_free(client)
        tasks, files = len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))
        dice = random.Random(1)
        for _ in range(100):
            last = dice.randrange(1, 4)
            async for event in client.try_on(PICTURE, PICTURE, steps=200):
                if isinstance(event, vtryon.StepFinished) and event.step == last:
                    break
        await place_is_free(client)
        gc.collect()
        async with asyncio.timeout(10):
            while len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.02)
        assert len(list(Path("/proc/self/fd").iterdir())) <= files + 2


async def test_a_killed_client_frees_its_place() -> None:
    program = textwrap.dedent(
        """
        import asyncio, sys, vtryon
        async def main():
            async with vtryon.Client(sys.argv[1]) as client:
                async for event in client.try_on(sys.argv[2], steps=200):
                    if isinstance(event, vtryon.StepFinished):
                        print("stepping", flush=True)
        asyncio.run(main())
        """
    )
    picture = Path(__file__).parents[2] / "docs" / "strip.png"
    async with (
        embedded_mesh(
            backend="scripted", places=1, scripted_seconds=STEP_SECONDS, listen="127.0.0.1:0"
        ) as target,
        vtryon.Client(target) as client,
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, target, str(picture)), stdout=subprocess.PIPE
        )
        assert await process.stdout.readline() == b"stepping\n"
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await place_is_free(client)


async def test_after_the_deadline_no_step_begins() -> None:
    async with (
        embedded_mesh(backend="scripted", places=1, scripted_seconds=0.1) as target,
        vtryon.Client(target) as client,
    ):
        for _ in range(3):
            try:
                await client.try_on(PICTURE, steps=200, timeout_seconds=0.55)
            except vtryon.DeadlineError as error:
                assert error.completed_steps <= 5
            else:
                raise AssertionError("the deadline passed unnoticed")
        await place_is_free(client)


async def test_memory_does_not_grow_with_requests(served_mesh) -> None:
    async with vtryon.Client(served_mesh.target) as client:

        async def some(count: int) -> None:
            for _ in range(count // 10):
                runs = [client.try_on(PICTURE, PICTURE, steps=1) for _ in range(10)]
                await asyncio.gather(*runs)

        await some(300)
        before = served_mesh.memory_kib("VmRSS")
        await some(300)
        assert served_mesh.memory_kib("VmRSS") < before * 1.05
