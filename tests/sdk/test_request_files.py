"""Request files: every key is honoured, said, or refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.support.pictures import png
from tests.support.processes import VTRYON, ServedMesh

from vtryon.cli.requests import read_request
from vtryon.errors import RequestError
from vtryon.types import GuidanceNorm, Lora, Numerics, Profile, Stage

WEIGHTS = {"transformer": "qwen_fp8[bold].safetensors", "vae": "v.safetensors"}


@pytest.fixture
def request_file(tmp_path: Path):
    (tmp_path / "person.png").write_bytes(png())
    (tmp_path / "garment.png").write_bytes(png())

    def write(**content: object) -> Path:
        path = tmp_path / "request.json"
        path.write_text(json.dumps({"steps": 1, **content}), encoding="utf-8-sig")
        return path

    return write


def try_on(path: Path, mesh: ServedMesh, *words: str) -> subprocess.CompletedProcess[str]:
    command = [VTRYON, "try-on", "person.png", "garment.png", "-o", "out.png", "--request", path]
    return subprocess.run(
        [*command, "--endpoint", mesh.target, *words],
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_request_file_is_read_whole(request_file) -> None:
    found = read_request(
        request_file(
            prompt="wear it",
            seed=2**64 - 1,
            sigmas=[0.8, 0.4],
            numerics={"profile": "comfy", "shift": 3, "guidance_norm": "x0"},
            loras=[{"name": "silk", "strength": 0.5}, {"name": "quick"}],
            pictures=["a.png"],
            checkpoint={**WEIGHTS, "weight_dtype": "fp8", "zero_cond_t": True},
        )
    )
    assert found.options == {
        "prompt": "wear it",
        "steps": 1,
        "seed": 2**64 - 1,
        "sigmas": (0.8, 0.4),
        "numerics": Numerics(Profile.COMFY, shift=3.0, guidance_norm=GuidanceNorm.X0),
        "loras": (Lora("silk", 0.5), Lora("quick")),
    }
    assert found.weights == {**WEIGHTS, "weight_dtype": "fp8"}
    assert (found.pictures, found.zero_cond_t) == (("a.png",), True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"stepz": 3}, "unknown 'stepz'; known: checkpoint, guidance_rescale, height"),
        ({"numerics": {"shifts": 3}}, "numerics: unknown 'shifts'"),
        ({"numerics": {"shift": "3"}}, "numerics: shift: '3' is not a number"),
        ({"numerics": {"profile": "none"}}, "numerics: profile: 'none'"),
        ({"numerics": 3}, "numerics is not a JSON object"),
        ({"checkpoint": {"lora": []}}, "checkpoint: unknown 'lora'"),
        ({"loras": ["x"]}, "loras: a LoRA has a name"),
        ({"loras": {"x": 1}}, "loras: .* is not a list of LoRAs"),
        ({"loras": [{"name": "x", "weight": 1}]}, "loras: a LoRA has a name"),
        ({"loras": [{"name": "x", "strength": "1"}]}, "loras: '1' is not a number"),
        ({"checkpoint": {"zero_cond_t": 1}}, "zero_cond_t: not true or false"),
        ({"checkpoint": {"digests": {"sampler": "x"}}}, "digests: 'sampler'"),
        ({"pictures": "a.png"}, "pictures: not a list"),
        ({"steps": 2.5}, r"steps: 2\.5 is not a whole number"),
        ({"prompt": None}, "prompt: None is not text"),
    ],
)
def test_what_a_request_file_can_not_say_is_refused_by_name(request_file, content, words) -> None:
    with pytest.raises(RequestError, match=words):
        read_request(request_file(**content))


def test_weights_that_can_not_be_compared_are_said_and_fail_when_strict(
    request_file, served_mesh: ServedMesh
) -> None:
    path = request_file(checkpoint=WEIGHTS, pictures=["model.png", "shirt.png"])
    drawn = try_on(path, served_mesh)
    assert drawn.returncode == 0, drawn.stderr
    assert "transformer qwen_fp8[bold].safetensors, vae v.safetensors" in drawn.stderr
    assert "in place of model.png, shirt.png" in drawn.stderr
    told = json.loads(try_on(path, served_mesh, "--json").stdout)
    assert len(told["notes"]) == 2
    strict = try_on(path, served_mesh, "--strict")
    assert strict.returncode == 2
    assert "qwen_fp8[bold].safetensors" in strict.stderr
    digests = {stage: one["model_digest"] for stage, one in told["stages"].items()}
    assert digests[Stage.SAMPLING]
    held = try_on(request_file(checkpoint={**WEIGHTS, "digests": digests}), served_mesh, "--strict")
    assert held.returncode == 0, held.stderr
    digests[Stage.SAMPLING] = "another"
    other = try_on(request_file(checkpoint={"digests": digests}), served_mesh, "--strict")
    assert other.returncode == 2
    assert "for the sampling digest another" in other.stderr


def test_loras_are_refused_by_name_unless_they_are_ignored(
    request_file, served_mesh: ServedMesh
) -> None:
    loras = [{"name": "quick", "strength": 1.0}]
    path = request_file(loras=loras)
    refused = try_on(path, served_mesh)
    assert refused.returncode == 2
    assert "the sampler has no LoRA 'quick'; those of its setting `loras`: none" in refused.stderr
    assert not (path.parent / "out.png").exists()
    assert try_on(path, served_mesh, "--ignore-loras").returncode == 0
    none = try_on(request_file(), served_mesh, "--ignore-loras")
    assert (none.returncode, "names no LoRAs" in none.stderr) == (2, True)


def test_another_number_of_pictures_is_said(request_file, served_mesh: ServedMesh) -> None:
    path = request_file(pictures=["a.png", "b.png", "c.png"])
    assert "is for 3 pictures" in try_on(path, served_mesh).stderr
    assert try_on(path, served_mesh, "--strict").returncode == 2
