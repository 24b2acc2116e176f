"""Attacks of a tenant on jobs, and a good caller of another tenant; see `vtryon_loadtests.hostile`.

The job store is a SQLite file, which allows one writer at a time.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path

import vtryon
from vtryon.jobs import Jobs
from vtryon_loadtests.attacks import paced
from vtryon_loadtests.tensor_streaming import running

_PICTURES = (b"person", b"garment")
_WATCHERS = 100
_LISTED = 200


@contextmanager
def serve_jobs(folder: Path) -> Iterator[tuple[str, str]]:
    """Serve a scripted mesh, and jobs in a SQLite file; gives the targets of both."""
    port = ("--listen", "127.0.0.1:0")
    mesh = running(
        *("vtryon", "serve", "all", "--backend", "scripted", *port),
        VTRYON_SCRIPTED_SECONDS="0.005",
    )
    with (
        mesh as pipeline,
        running(
            *("vtryon", "serve", "jobs", *port),
            VTRYON_JOBS_PIPELINE_TARGET=pipeline,
            VTRYON_JOBS_DATABASE_URL=f"sqlite:///{folder / 'jobs.sqlite'}",
            VTRYON_JOBS_ARTIFACTS_URL=str(folder / "artifacts"),
            VTRYON_JOBS_OUTBOX="true",
        ) as jobs,
    ):
        yield pipeline, jobs


@asynccontextmanager
async def serve() -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """Serve jobs; the good caller makes one and follows it to its end."""
    with tempfile.TemporaryDirectory() as folder, serve_jobs(Path(folder)) as (_, target):
        async with vtryon.Client(target) as client:
            jobs = client.acting_for("good").jobs

            async def call() -> None:
                async with asyncio.timeout(30):
                    made = await jobs.create(*_PICTURES, steps=4)
                    ended = await jobs.wait(made.id)
                if ended.state is not vtryon.JobState.SUCCEEDED:
                    raise RuntimeError(f"the job ended as {ended.state}")

            yield target, call


async def job_floods(target: str) -> None:
    """Make jobs as often as the edge lets one tenant."""
    await _attack(target, lambda jobs: jobs.create(*_PICTURES, steps=4))


async def long_jobs(target: str) -> None:
    """Make jobs of 200 steps, more than are run."""
    await _attack(target, lambda jobs: jobs.create(*_PICTURES, steps=200))


async def large_labels(target: str) -> None:
    """Make jobs with labels of 48 KB."""
    labels = {f"{number}": "x" * 3000 for number in range(16)}
    await _attack(target, lambda jobs: jobs.create(*_PICTURES, steps=4, labels=labels))


async def list_floods(target: str) -> None:
    """List many jobs again and again."""
    async with vtryon.Client(target) as client:
        jobs = client.acting_for("hostile").jobs
        for _ in range(_LISTED):
            await jobs.create(*_PICTURES, steps=1)
        await paced(lambda: jobs.page(size=1000))


async def many_watches(target: str) -> None:
    """Watch a job a hundredfold, and the next one when it has ended."""
    async with vtryon.Client(target) as client:
        jobs = client.acting_for("hostile").jobs

        async def watch(job_id: str) -> None:
            async for _ in jobs.watch(job_id):
                pass

        while True:
            made = await jobs.create(*_PICTURES, steps=200)
            watches = (watch(made.id) for _ in range(_WATCHERS))
            await asyncio.gather(*watches, return_exceptions=True)


async def reconnecting_watches(target: str) -> None:
    """Watch a job from its first event, leave it at once, and come back."""
    async with vtryon.Client(target) as client:
        jobs = client.acting_for("hostile").jobs
        made = await jobs.create(*_PICTURES, steps=200)

        async def look() -> None:
            async with aclosing(jobs.watch(made.id)) as updates:
                await anext(updates)

        await paced(look)


async def unknown_jobs(target: str) -> None:
    """Ask for jobs that are not there."""
    await _attack(target, lambda jobs: jobs.get("0" * 32))


async def _attack(target: str, one: Callable[[Jobs], Awaitable[object]]) -> None:
    async with vtryon.Client(target) as client:
        jobs = client.acting_for("hostile").jobs
        await paced(lambda: one(jobs))


ATTACKS = {
    one.__name__.replace("_", " "): one
    for one in (
        *(job_floods, long_jobs, large_labels, list_floods, many_watches, reconnecting_watches),
        unknown_jobs,
    )
}
