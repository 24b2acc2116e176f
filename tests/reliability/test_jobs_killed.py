"""F15: the process with the runners dies at six named points; no job is lost, none ends twice.

One kill at each point; twenty with `make chaos`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.dies import ERASING, JOBS, MAKING
from tests.support.pictures import png
from tests.support.processes import ServedMesh, free_port, served

import vtryon
from vtryon.jobs import JobState

PICTURE = png()
STEPS = 12


@pytest.fixture(scope="module")
def mesh() -> Iterator[ServedMesh]:
    with served("all", "--backend", "scripted", VTRYON_SAMPLING_SCRIPTED_SECONDS="0.01") as mesh:
        yield mesh


class Office:
    """The service of jobs, on one port and one database through all its lives."""

    def __init__(self, folder: Path, pipeline: str) -> None:
        self.target = f"127.0.0.1:{free_port()}"
        self._variables = {
            "VTRYON_JOBS_DATABASE_URL": f"sqlite:///{folder / 'jobs.sqlite'}",
            "VTRYON_JOBS_ARTIFACTS_URL": str(folder / "artifacts"),
            "VTRYON_JOBS_PIPELINE_TARGET": pipeline,
            "VTRYON_JOBS_LEASE_SECONDS": "0.5",
            "VTRYON_JOBS_RETRY_SECONDS": "0.1",
            "VTRYON_JOBS_MAX_ATTEMPTS": "50",
            "VTRYON_JOBS_RESUME_EVERY": "3",
            "VTRYON_JOBS_LEFTOVER_SECONDS": "3",
        }
        self.folder = folder

    def run(self, point: str | None, times: int = 1) -> subprocess.Popen[bytes]:
        module = ["tests.support.dies", point, str(times)] if point else ["vtryon"]
        command = [sys.executable, "-m", *module, "serve", "jobs", "--listen", self.target]
        return subprocess.Popen(
            command,
            env={**os.environ, **self._variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


async def submit(client: vtryon.Client, number: int) -> vtryon.Job:
    """Submit until it is accepted: the same id each time."""
    while True:
        try:
            return await client.jobs.create(
                PICTURE, PICTURE, steps=STEPS, seed=number, request_id=f"job-{number}"
            )
        except vtryon.UnavailableError:
            await asyncio.sleep(0.1)


async def watch(client: vtryon.Client, job_id: str) -> AsyncIterator[vtryon.JobUpdate]:
    """Watch to the end, through all breaks."""
    following = 1
    while True:
        try:
            async for update in client.jobs.watch(job_id, from_sequence=following):
                following = update.sequence + 1
                yield update
                if update.job is not None and update.job.state.ended:
                    return
        except vtryon.UnavailableError:
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("point", JOBS)
@pytest.mark.timeout(600)
async def test_no_job_is_lost_and_none_ends_twice(
    mesh: ServedMesh, tmp_path: Path, point: str, chaos: bool
) -> None:
    office = Office(tmp_path, mesh.target)
    async with vtryon.Client(office.target) as client, vtryon.Client(mesh.target) as direct:
        for number in range(20 if chaos else 1):
            process = office.run(point, times=1 + number % 3 if point == "steps told" else 1)
            submitting = asyncio.create_task(submit(client, number))
            assert await asyncio.to_thread(process.wait, 60) == -9
            alive = office.run(None)
            try:
                job = await submitting
                updates = [update async for update in watch(client, job.id)]
                ended = await client.jobs.get(job.id)
                picture = await client.jobs.picture(job.id)
                everything = [one async for one in client.jobs.list()]
            finally:
                alive.terminate()
                await asyncio.to_thread(alive.wait, 60)
            assert ended.state is JobState.SUCCEEDED
            assert len(everything) == number + 1  # one job per id
            assert [one.sequence for one in updates] == list(range(1, ended.sequence + 1))
            finals = [one for one in updates if one.job is not None and one.job.state.ended]
            assert len(finals) == 1
            drawn = await direct.try_on(PICTURE, PICTURE, steps=STEPS, seed=number)
            assert picture.data == drawn.picture.data
            steps = [
                one.event.step for one in updates if isinstance(one.event, vtryon.StepFinished)
            ]
            assert steps[-1] == STEPS
            if point == "resume point kept":
                assert steps.count(1) == 1  # it went on behind step 3


def folders(office: Office) -> set[str]:
    """What is in the artifact store."""
    files = [one for one in (office.folder / "artifacts").rglob("*") if one.is_file()]
    return {one.relative_to(office.folder / "artifacts").parts[0] for one in files}


@pytest.mark.parametrize("point", ERASING)
@pytest.mark.timeout(300)
async def test_erasure_goes_on_after_a_kill(mesh: ServedMesh, tmp_path: Path, point: str) -> None:
    office = Office(tmp_path, mesh.target)
    async with vtryon.Client(office.target) as client:
        process = office.run(point)
        job = await submit(client, 1)
        assert [one async for one in watch(client, job.id)]
        assert folders(office) == {job.id}
        erasing = asyncio.create_task(client.jobs.erase(job.id))
        assert await asyncio.to_thread(process.wait, 60) == -9
        erasing.cancel()  # nobody asks again
        await asyncio.gather(erasing, return_exceptions=True)
        alive = office.run(None)
        try:
            while not (await found(client, job.id)).erased or folders(office):
                await asyncio.sleep(0.1)
        finally:
            alive.terminate()
            await asyncio.to_thread(alive.wait, 60)


@pytest.mark.parametrize("point", MAKING)
@pytest.mark.timeout(300)
async def test_a_job_that_was_never_made_leaves_no_pictures_after_a_kill(
    mesh: ServedMesh, tmp_path: Path, point: str
) -> None:
    office = Office(tmp_path, mesh.target)
    async with vtryon.Client(office.target) as client:
        process = office.run(point)
        submitting = asyncio.create_task(submit(client, 1))
        assert await asyncio.to_thread(process.wait, 60) == -9
        alive = office.run(None)
        try:
            job = await submitting
            while folders(office) != {job.id}:
                await asyncio.sleep(0.1)
            assert len([one async for one in client.jobs.list()]) == 1
        finally:
            alive.terminate()
            await asyncio.to_thread(alive.wait, 60)


async def found(client: vtryon.Client, job_id: str) -> vtryon.Job:
    """Ask until there is an answer."""
    while True:
        try:
            return await client.jobs.get(job_id)
        except vtryon.UnavailableError:
            await asyncio.sleep(0.1)
