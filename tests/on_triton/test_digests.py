"""Servers behind one service hold the same checkpoint, from the start and when they come back."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.support.triton import export_shipped, triton_server

from vtryon.errors import SettingsError, UnavailableError
from vtryon.pictures import read_picture
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.triton.client import TritonPool
from vtryon_services.triton.contract import Model
from vtryon_services.triton.export import Options, export

pytestmark = pytest.mark.timeout(300)  # servers start one after the other
MODEL = Model.LATENT_ENCODER


def only(repository: Path) -> Path:
    """Leave one model, which starts quickly."""
    for folder in repository.iterdir():
        if folder.is_dir() and folder.name != MODEL:
            shutil.rmtree(folder)
    return repository


@pytest.fixture
def repositories(tmp_path: Path, triton) -> tuple[Path, Path]:
    """The shipped checkpoint's, and that of one with another geometry."""
    other = tmp_path / "checkpoint"
    shutil.copytree(SHIPPED_CHECKPOINT, other)
    geometry = other / "geometry.json"
    geometry.write_text(geometry.read_text().replace("262144", "65536"))
    (other / "digests.json").unlink()
    export(Checkpoint.open(other), tmp_path / "other", Options(threads=1))
    return only(export_shipped(tmp_path / "shipped", threads=1)), only(tmp_path / "other")


async def test_servers_with_different_checkpoints_are_refused_at_the_start(
    triton, repositories, tmp_path: Path
) -> None:
    with triton_server(repositories[1], tmp_path / "server.log") as other:
        pool = TritonPool([triton.grpc, other.grpc])
        with pytest.raises(SettingsError, match="different checkpoints"):
            await pool.agree([MODEL])
        await pool.close()


async def answer(pool: TritonPool, tensors: dict[str, np.ndarray]) -> str:
    """Ask until the connection is there again; gives what the server refuses with."""
    async with asyncio.timeout(60):
        while True:
            with pytest.raises(UnavailableError) as caught:
                await pool.infer(MODEL, tensors)
            if "failed to connect" not in str(caught.value):
                return str(caught.value)
            await asyncio.sleep(0.1)


async def test_a_server_that_comes_back_with_another_checkpoint_is_not_used(
    repositories, example, tmp_path: Path
) -> None:
    shipped, other = repositories
    tensors = {"PICTURE": np.frombuffer(read_picture(example.person), np.uint8)}
    with triton_server(shipped, tmp_path / "server.log") as running:
        port = int(running.grpc.rpartition(":")[2])
        pool = TritonPool([running.grpc])
        await pool.agree([MODEL])
        assert await pool.is_ready(MODEL)
        latents = (await pool.infer(MODEL, tensors))["LATENTS"]
    assert not await pool.is_ready(MODEL)
    with triton_server(other, tmp_path / "server.log", grpc_port=port):
        assert "another checkpoint" in await answer(pool, tensors)
        assert not await pool.is_ready(MODEL)
    with triton_server(shipped, tmp_path / "server.log", grpc_port=port):
        async with asyncio.timeout(60):
            while not await pool.is_ready(MODEL):
                await asyncio.sleep(0.1)
        np.testing.assert_array_equal((await pool.infer(MODEL, tensors))["LATENTS"], latents)
    await pool.close()
