"""`vtryon stage`: a try-on file by file is the try-on."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from tests.support.processes import VTRYON, served

import vtryon


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, example) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    example.person.save(folder / "person.png")
    example.garment.save(folder / "garment.png")
    return folder


@pytest.fixture(scope="module")
def endpoint():
    with served("all") as process:
        yield process.target


def stage(folder: Path, endpoint: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [VTRYON, "stage", *words, "--endpoint", endpoint]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


async def test_four_commands_draw_what_one_does(folder: Path, endpoint: str, example) -> None:
    pictures = ("person.png", "garment.png")
    for words in (
        ("encode-text", *pictures, "--prompt", example.prompt, "-o", "text.safetensors"),
        ("encode-image", *pictures, "-o", "pictures.safetensors"),
        (
            *("sample", "text.safetensors", "pictures.safetensors", "-o", "drawn.safetensors"),
            *("--steps", "4", "--seed", "7", "--previews", "previews"),
            *("--preview-every", "3", "--preview-max-pixels", "100"),
        ),
        ("decode", "drawn.safetensors", "-o", "result.png"),
    ):
        done = stage(folder, endpoint, *words)
        assert done.returncode == 0, done.stderr
    async with vtryon.Client(endpoint) as client:
        whole = await client.try_on(
            example.person, example.garment, example.prompt, steps=4, seed=7
        )
    drawn = np.asarray(Image.open(folder / "result.png")).astype(int)
    assert np.abs(drawn - whole.picture.to_numpy()).max() <= 1
    previews = sorted((folder / "previews").iterdir())
    assert [path.name for path in previews] == ["step-003.png", "step-004.png"]
    for path in previews:
        with Image.open(path) as preview:
            assert math.prod(preview.size) <= 100
    with safe_open(folder / "drawn.safetensors", "numpy") as file:
        assert file.metadata()["seed"] == "7"
        assert file.metadata()["sigmas"].endswith(", 0.0")
    assert not list(folder.glob(".*.part"))
    names = ("text.safetensors", "pictures.safetensors", "-o", "none.safetensors")
    done = stage(folder, endpoint, "sample", *names, "--width", "0")
    assert (done.returncode, "width" in done.stderr) == (2, True)


def test_latents_of_a_picture_can_be_looked_at(folder: Path, endpoint: str) -> None:
    assert not stage(
        folder, endpoint, "encode-image", "person.png", "-o", "p.safetensors"
    ).returncode
    assert not stage(folder, endpoint, "decode", "p.safetensors", "-o", "back.webp").returncode
    back = np.asarray(Image.open(folder / "back.webp").convert("RGB")).astype(int)
    there = np.asarray(Image.open(folder / "person.png").convert("RGB")).astype(int)
    assert np.abs(back - there).mean() < 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("decode", "person.png", "-o", "x.png"), "person.png: no safetensors"),
        (("decode", "nothing.safetensors", "-o", "x.png"), "No such file"),
        (("decode", "other.safetensors", "-o", "x.png"), "there are no latents, but weights"),
        (("decode", "other.safetensors", "-o", "x.bmp"), "ends in none of"),
        (("sample", "other.safetensors", "other.safetensors", "-o", "y"), "takes a file of"),
        (("encode-image", "other.safetensors", "-o", "y"), "PICTURE_FORMAT_UNSUPPORTED"),
    ],
)
def test_what_does_not_fit_is_said(folder: Path, endpoint: str, words: tuple, said: str) -> None:
    save_file({"weights": np.zeros((2, 2), np.float32)}, folder / "other.safetensors")
    if words[-1] == "x.bmp":
        save_file({"latents": np.zeros((16, 4, 4), np.float32)}, folder / "other.safetensors")
    done = stage(folder, endpoint, *words)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert not (folder / words[-1]).exists()
