"""Options that change nothing are said back, by every way in."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.commands import invoke
from tests.support.pictures import png
from tests.support.rest import events_of

import vtryon
from vtryon.options import make_options
from vtryon.types import Numerics, PreviewPolicy, Profile, SigmaSchedule
from vtryon_services.engine.numerics import resolve
from vtryon_services.validation.unused import unused_options

PICTURE = png()
GUIDED = {"negative_prompt": "tucked in", "true_cfg_scale": 3.0}
NORM = Numerics(Profile.COMFY, guidance_norm=vtryon.GuidanceNorm.NONE)
LEVELS = {"sigmas": (1.0, 0.5)}


@pytest.mark.parametrize(
    ("options", "default_scale", "fields"),
    [
        ({}, 1.0, set()),
        (GUIDED, 1.0, set()),
        ({"negative_prompt": "tucked in"}, 4.0, set()),
        ({"negative_prompt": "tucked in"}, 1.0, {"negative_prompt"}),
        ({"negative_prompt": ""}, 1.0, {"negative_prompt"}),
        ({"true_cfg_scale": 3.0}, 1.0, {"true_cfg_scale"}),
        ({"true_cfg_scale": 0.5}, 4.0, {"true_cfg_scale"}),
        ({"true_cfg_scale": 1.0}, 4.0, set()),
        ({**GUIDED, "true_cfg_scale": 0.5}, 4.0, {"negative_prompt"}),
        ({**GUIDED, "true_cfg_scale": 1.0}, 4.0, {"negative_prompt"}),
        ({"numerics": NORM}, 4.0, {"numerics.guidance_norm"}),
        ({**GUIDED, "numerics": NORM}, 1.0, set()),
        ({"guidance_rescale": 0.7}, 4.0, {"guidance_rescale"}),
        ({"guidance_rescale": 0.0}, 4.0, set()),
        ({**GUIDED, "guidance_rescale": 0.7, "numerics": NORM}, 1.0, set()),
        ({**GUIDED, "guidance_rescale": 0.7}, 1.0, {"guidance_rescale"}),
        (LEVELS, 1.0, set()),
        (
            {**LEVELS, "numerics": Numerics(schedule=SigmaSchedule.SIMPLE, shift=2.0)},
            1.0,
            {"numerics.schedule", "numerics.shift"},
        ),
        ({"previews": PreviewPolicy(0, 64)}, 1.0, {"previews.max_pixels"}),
    ],
)
def test_an_option_that_changes_nothing_is_named(
    options: dict[str, Any], default_scale: float, fields: set[str]
) -> None:
    given = make_options(**options)
    scale = default_scale if given.true_cfg_scale is None else given.true_cfg_scale
    norm = resolve(given.numerics).guidance_norm
    found = unused_options(given, scale, negative=given.negative_prompt is not None, norm=norm)
    assert {one.field for one in found} == fields
    assert all(one.reason for one in found)


def test_the_pipeline_leaves_to_the_sampler_what_the_checkpoint_decides() -> None:
    given = make_options(negative_prompt="tucked in")
    assert unused_options(given, None, negative=True) == ()


async def test_a_result_and_a_job_have_what_pipeline_and_sampler_say(mesh_and_rest) -> None:
    asked = {"negative_prompt": "tucked in", "steps": 1, "previews": False}
    async with vtryon.Client(mesh_and_rest[0]) as client:
        [unused] = (await client.try_on(PICTURE, **asked)).unused_options
        assert unused.field == "negative_prompt"
        assert "by default it is 1" in unused.reason
        [other] = (await client.try_on(PICTURE, steps=1, true_cfg_scale=3.0)).unused_options
        assert other.field == "true_cfg_scale"
        assert "negative_prompt" in other.reason
        assert (await client.try_on(PICTURE, steps=1, **GUIDED)).unused_options == ()
        job = await client.jobs.wait((await client.jobs.create(PICTURE, **asked)).id)
        assert job.model_digests == (await client.try_on(PICTURE, steps=1)).model_digests
        assert len(job.model_digests) == 4
        assert job.unused_options == (unused,)


async def test_rest_says_it_in_a_header_in_json_and_in_events(mesh_and_rest) -> None:
    body = {"person": base64.b64encode(PICTURE).decode(), "steps": 1, "negative_prompt": "no"}
    async with httpx.AsyncClient(base_url=mesh_and_rest[1], timeout=30, verify=False) as http:
        picture = await http.post("/v1/try-ons", json=body)
        assert picture.headers["x-vtryon-unused-options"] == "negative_prompt"
        headers = {"idempotency-key": "unused"}
        job = await http.post("/v1/try-ons", json=body, headers=headers)
        assert job.headers["x-vtryon-unused-options"] == "negative_prompt"
        assert job.headers["x-vtryon-model-digests"] == picture.headers["x-vtryon-model-digests"]
        said = await http.post("/v1/try-ons", json=body, headers={"accept": "application/json"})
        assert [one["field"] for one in said.json()["unused_options"]] == ["negative_prompt"]
        told = await http.post("/v1/try-ons", json=body, headers={"accept": "text/event-stream"})
        assert events_of(told.text)[-1][1]["unused_options"] == said.json()["unused_options"]
        guided = await http.post("/v1/try-ons", json={**body, "true_cfg_scale": 3.0})
        assert "x-vtryon-unused-options" not in guided.headers


async def test_the_command_prints_a_note_and_has_it_in_json(mesh_and_rest, tmp_path: Path) -> None:
    (tmp_path / "person.png").write_bytes(PICTURE)
    person, out = tmp_path / "person.png", tmp_path / "out.png"
    command = ["try-on", person, person, "-o", out, "--steps", 1, "--negative-prompt", "no"]

    async def run(*more: str) -> Any:
        return await asyncio.to_thread(invoke, *command, "--endpoint", mesh_and_rest[0], *more)

    assert "negative_prompt has no effect" in " ".join((await run()).stderr.split())
    described = json.loads((await run("--json")).stdout.splitlines()[-1])
    assert [one["field"] for one in described["unused_options"]] == ["negative_prompt"]


async def test_a_batch_has_it_in_its_report_and_in_a_note(mesh_and_rest, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "pairs" / name).mkdir(parents=True)
        for part in ("person", "garment"):
            (tmp_path / "pairs" / name / f"{part}.png").write_bytes(PICTURE)
    command = ["batch", tmp_path / "pairs", tmp_path / "out", "--steps", 1]
    command += ["--negative-prompt", "no", "--endpoint", mesh_and_rest[0]]
    said = (await asyncio.to_thread(invoke, *command)).stderr
    assert "negative_prompt has no effect" in said
    assert "(2 of 2 entries)" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for line in report["results"]:
        assert len(line["digests"]) == 4
        assert [one["field"] for one in line["unused_options"]] == ["negative_prompt"]


async def test_a_prompt_keeps_its_white_space(mesh_and_rest, tmp_path: Path) -> None:
    (tmp_path / "person.png").write_bytes(PICTURE)
    person, out = tmp_path / "person.png", tmp_path / "out.png"
    async with vtryon.Client(mesh_and_rest[0]) as client:
        results = [
            (await client.try_on(PICTURE, PICTURE, prompt, steps=1, seed=1)).picture.data
            for prompt in (" wear it ", "wear it")
        ]
    assert results[0] != results[1]
    command = ["try-on", person, person, "-o", out, "--steps", 1, "--seed", 1, "--prompt"]
    await asyncio.to_thread(invoke, *command, " wear it ", "--endpoint", mesh_and_rest[0])
    assert out.read_bytes() == results[0]
