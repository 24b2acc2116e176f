"""Every option of a try-on, by every command and every file."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import invoke
from tests.support.pictures import png

import vtryon
from vtryon.cli.batch import batch
from vtryon.cli.jobs import submit
from vtryon.cli.requests import read_request
from vtryon.cli.stage import sample
from vtryon.cli.try_on import try_on
from vtryon.files import strict
from vtryon.types import Numerics, Profile, ResizeFilter, SampleStart, TryOnOptions

NUMERICS = {one.name for one in fields(Numerics)}
# What goes by other names: a suffix or --format, and a folder.
ELSEWHERE = {"numerics", "format", "previews"}
VALUES: dict[str, Any] = {
    "schedule": "simple",
    "shift": 2.5,
    "guidance_norm": "none",
    "resize": "area",
    "rope_layout": "comfy",
}


def test_files_have_every_option() -> None:
    wanted = {one.name for one in fields(TryOnOptions)} | NUMERICS
    assert {*strict.OPTIONS} == wanted - ELSEWHERE


@pytest.mark.parametrize("command", [try_on, batch, submit])
def test_every_command_has_every_option(command: Callable[..., None]) -> None:
    assert {*strict.OPTIONS} <= {*inspect.signature(command).parameters}


def test_the_sampler_alone_has_every_option_of_its_own() -> None:
    wanted = {one.name for one in fields(SampleStart)} | NUMERICS
    beside = {"payloads", "resume", "resume_every", "numerics", "resize"}
    assert wanted - beside <= {*inspect.signature(sample).parameters}


def test_numerics_are_put_together() -> None:
    base = Numerics(Profile.COMFY, shift=3.0)
    asked = {"steps": 2, "numerics": base, "shift": None, "resize": ResizeFilter.LANCZOS}
    numerics = Numerics(Profile.COMFY, shift=3.0, resize=ResizeFilter.LANCZOS)
    assert strict.arguments(asked) == {"steps": 2, "numerics": numerics}
    assert strict.arguments({"steps": 2}) == {"steps": 2}


def test_a_request_file_may_have_what_is_no_numerics(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text(json.dumps({"priority": "batch", "quality": 80}))
    assert read_request(tmp_path / "request.json").options == {"priority": "batch", "quality": 80}


def words_of(values: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


async def run(*words: object) -> Any:
    ran = await asyncio.to_thread(invoke, *words)
    assert ran.exit_code == 0, ran.output
    return ran


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "pair"
    folder.mkdir()
    for name in ("person", "garment"):
        (folder / f"{name}.png").write_bytes(png())
    return [folder / "person.png", folder / "garment.png"]


async def test_try_on_and_jobs_pass_numerics_on(
    mesh_and_rest: tuple[str, str], pair: list[Path], tmp_path: Path
) -> None:
    at = ("--endpoint", mesh_and_rest[0], "--json", "--steps", 2, *words_of(VALUES))
    ran = await run("try-on", *pair, "-o", tmp_path / "out.jpg", "--quality", 70, *at)
    stages = json.loads(ran.stdout.splitlines()[-1])["stages"]
    for stage in ("latent-encoder", "text-encoder", "sampling"):
        numerics = stages[stage]["numerics"]
        told = {name: numerics[name] for name in VALUES if numerics[name] is not None}
        assert told == {name: value for name, value in VALUES.items() if name in told}
        assert set(told) == {"resize"} if stage != "sampling" else set(VALUES) - {"resize"}
    ran = await run("jobs", "submit", *pair, "--strength", 0.5, "--priority", "batch", *at)
    job = json.loads(ran.stdout.splitlines()[-1])
    async with vtryon.Client(mesh_and_rest[0]) as client:
        options = (await client.jobs.wait(job["id"])).options
    assert options is not None
    assert options.numerics == Numerics(**VALUES)
    assert (options.strength, options.priority) == (0.5, "batch")


async def test_a_batch_takes_them_by_command_and_by_column(mesh_and_rest, pair, tmp_path) -> None:
    manifest = tmp_path / "pair" / "rows.csv"
    manifest.write_text("name,person,garments,sigmas,shift\na,person.png,garment.png,1 0.5,2.5\n")
    at = ("--endpoint", mesh_and_rest[0], "--schedule", "simple")
    await run("batch", manifest, tmp_path / "out", *at)
    [line] = json.loads((tmp_path / "out" / "report.json").read_text())["results"]
    unused = {one["field"] for one in line["unused_options"]}
    assert unused == {"numerics.shift", "numerics.schedule"}


async def test_noise_levels_are_read_as_numbers(mesh_and_rest, pair, tmp_path: Path) -> None:
    at = ("-o", tmp_path / "out.png", "--endpoint", mesh_and_rest[0], "--json")
    ran = await run("try-on", *pair, "--sigmas", "1.0, 0.5", *at)
    assert json.loads(ran.stdout.splitlines()[-1])["stages"]["sampling"]["sigmas"][:2] == [1, 0.5]
    wrong = await asyncio.to_thread(invoke, "try-on", *pair, "--sigmas", "1.0 x", *at)
    assert wrong.exit_code == 2
