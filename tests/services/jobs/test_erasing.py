"""What is erased leaves no byte of a picture, a preview, latents or a prompt."""

from __future__ import annotations

import asyncio
import random
import zlib
from pathlib import Path
from struct import pack

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from tests.support.processes import served

import vtryon
from vtryon.jobs import JobState
from vtryon.types import PreviewPolicy
from vtryon_services.jobs.changes import Changes
from vtryon_services.jobs.database import open_database
from vtryon_services.jobs.eraser import Eraser
from vtryon_services.jobs.seals import Seals
from vtryon_services.jobs.store import JobStore, StoreLimits
from vtryon_services.storage.artifacts import Artifacts
from vtryon_services.storage.outage import StorageError

PROMPTS = ("zebracanary please", "quaggacanary never")


def noise(seed: int, side: int = 64) -> bytes:
    """A PNG whose pixels are stored as they are, and are like no others."""
    drawn = random.Random(seed)
    rows = b"".join(b"\0" + drawn.randbytes(3 * side) for _ in range(side))

    def part(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    head = part(b"IHDR", pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = part(b"IDAT", zlib.compress(rows, 0)) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


def holders(folders: list[Path], canaries: list[bytes]) -> list[str]:
    """The files that hold any of these, uncompressed."""
    files = [one for folder in folders for one in folder.rglob("*") if one.is_file()]
    return [str(one) for one in files if any(canary in one.read_bytes() for canary in canaries)]


async def data_folder(database_url: str) -> Path:
    """Where PostgreSQL keeps its tables and its journal."""
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(text("CHECKPOINT"))
        found = (await connection.execute(text("SHOW data_directory"))).scalar_one()
    await engine.dispose()
    return Path(found)


@pytest.mark.parametrize("how", ["erase", "cancel", "expiry"])
async def test_no_file_holds_what_an_erased_job_was_about(
    database_url: str, tmp_path: Path, how: str
) -> None:
    variables = {
        "VTRYON_JOBS_DATABASE_URL": database_url,
        "VTRYON_JOBS_ARTIFACTS_URL": str(tmp_path / "artifacts"),
        "VTRYON_JOBS_OUTBOX": "true",
        "VTRYON_JOBS_RESUME_EVERY": "1",
        "VTRYON_JOBS_KEEP_SECONDS": "0.1" if how == "expiry" else "1000",
        "VTRYON_SAMPLING_SCRIPTED_SECONDS": "0.05",
        "VTRYON_LOG_LEVEL": "debug",
    }
    pictures = [noise(1), noise(2)]
    previews: list[bytes] = []
    with served("all", "jobs", "--backend", "scripted", **variables) as mesh:
        async with vtryon.Client(mesh.target) as client:
            job = await client.jobs.create(
                *pictures,
                prompt=PROMPTS[0],
                negative_prompt=PROMPTS[1],
                steps=200 if how == "cancel" else 3,
                true_cfg_scale=4.0,
                previews=PreviewPolicy(every_steps=1),
            )
            assert (job.options.prompt, job.options.negative_prompt) == PROMPTS
            assert (await client.jobs.get(job.id)).options.prompt == PROMPTS[0]
            async for update in client.jobs.watch(job.id):
                if isinstance(update.event, vtryon.Preview):
                    previews.append(update.event.picture.data)
                if how == "cancel" and len(previews) == 3:
                    break
            gone = await getattr(client.jobs, "cancel" if how == "cancel" else "erase")(job.id)
            while not gone.erased:
                await asyncio.sleep(0.1)
                gone = await client.jobs.get(job.id)
            assert (gone.erasing, gone.options.prompt) == (False, "")
            late = [one.event async for one in client.jobs.watch(job.id)]
            kept = [one.picture for one in late if isinstance(one, vtryon.Preview)]
            assert kept
            assert set(kept) == {None}
    assert previews
    canaries = [one.encode() for one in PROMPTS]
    canaries += [one[200:260] for one in pictures] + [one[20:60] for one in previews]
    folders = [tmp_path]
    if database_url.startswith("postgresql"):
        folders.append(await data_folder(database_url))
    assert holders(folders, canaries) == []
    assert [one for one in (tmp_path / "artifacts").rglob("*") if one.is_file()] == []
    assert not any(canary in line.encode() for line in mesh.log for canary in canaries)


class TestStorageThatFails:
    @pytest.fixture
    def artifacts(self, tmp_path: Path) -> Artifacts:
        return Artifacts.open(str(tmp_path / "artifacts"))

    async def test_a_job_is_erased_only_when_its_folder_is_gone(
        self,
        caller: vtryon.Client,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        job = await caller.jobs.create(noise(3), noise(4), steps=1)
        await caller.jobs.wait(job.id)
        folder = tmp_path / "artifacts" / job.id
        with monkeypatch.context() as away:

            async def refuse(*_: object) -> None:
                raise StorageError("the storage failed (test)")

            away.setattr(Artifacts, "erase_folders", refuse)
            for _ in range(2):
                told = await caller.jobs.erase(job.id)
                assert (told.erased, told.erasing) == (False, True)
            assert any(folder.rglob("*"))
            with pytest.raises(vtryon.RequestError, match="erased"):
                await caller.jobs.picture(job.id)
        told = await caller.jobs.erase(job.id)
        assert (told.erased, told.erasing) == (True, False)
        assert not folder.exists()

    async def test_a_sweep_goes_on_with_what_was_left(self, tmp_path: Path, artifacts) -> None:
        database = await open_database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
        ledger = JobStore(database, StoreLimits(10, 3, 100, leftover_seconds=-1))
        await artifacts.put("nobody/given-0", b"x")
        await ledger.erasures.expect("nobody", "")
        await Eraser(ledger, artifacts, Seals(artifacts)).sweep()
        assert not (tmp_path / "artifacts" / "nobody").exists()
        assert await ledger.erasures.leftover() == []
        await database.close()


async def test_a_job_that_runs_is_erased_when_it_has_ended(caller: vtryon.Client) -> None:
    job = await caller.jobs.create(noise(5), steps=200)
    async for update in caller.jobs.watch(job.id):
        if isinstance(update.event, vtryon.StepFinished):
            break
    gone = await caller.jobs.erase(job.id)
    assert gone.state is JobState.CANCELLED
    assert gone.erased


def test_a_cancelled_job_forgets_its_prompts() -> None:
    ending = Changes(100, published=False).ending(JobState.CANCELLED)
    assert (ending["erasing"], ending["sealed"]) == (True, b"")


async def test_files_are_their_owner_s_alone(tmp_path: Path) -> None:
    artifacts = Artifacts.open(str(tmp_path / "artifacts"))
    await artifacts.put("a/b", b"x")
    database = await open_database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    ledger = JobStore(database, StoreLimits(10, 3, 100))
    await ledger.erasures.expect("a", "")
    modes = {one.name: one.stat().st_mode & 0o777 for one in tmp_path.rglob("*") if one.is_file()}
    await database.close()
    assert modes.pop("b") == 0o600
    assert {name.partition("-")[0] for name in modes} == {"jobs.sqlite"}
    assert set(modes.values()) == {0o600}
    assert (tmp_path / "artifacts").stat().st_mode & 0o777 == 0o700


async def test_the_data_folder_is_made_and_said(tmp_path: Path) -> None:
    fresh = tmp_path / "data"
    variables = {"VTRYON_JOBS_DATA_FOLDER": str(fresh), "VTRYON_JOBS_RUNNERS": "0"}
    with served("jobs", **variables) as mesh:
        async with vtryon.Client(mesh.target) as client:
            await client.jobs.create(noise(6))
        assert any(f"data_folder={fresh}" in line for line in mesh.log)
    assert {one.name for one in fresh.iterdir()} >= {"vtryon-jobs", "vtryon-jobs.sqlite"}
    assert fresh.stat().st_mode & 0o777 == 0o700
