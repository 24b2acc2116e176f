"""Random checkpoints of real architectures."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

import vtryon
from vtryon.embedded import embedded_mesh
from vtryon_services.models.architectures import ARCHITECTURES
from vtryon_services.models.make import make_random


async def test_a_random_checkpoint_is_served_and_draws(tmp_path, example) -> None:
    folder = tmp_path / "tiny"
    make_random(folder, "tiny", dtype=torch.bfloat16)
    async with (
        embedded_mesh(checkpoint=folder, dtype="bf16") as target,
        vtryon.Client(target) as client,
    ):
        run = client.try_on(
            example.person, example.garment, "x", steps=1, width=128, height=128, seed=1
        )
        assert (await run).picture.size == (128, 128)
    weights = QwenImageTransformer2DModel.from_pretrained(folder / "transformer").state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())
    with pytest.raises(FileExistsError):
        make_random(folder, "tiny")


def test_the_real_architecture_has_the_real_size() -> None:
    config = ARCHITECTURES["qwen-image-edit-2511"].transformer
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(**config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 20_430_401_088
    assert model.config.zero_cond_t


def test_the_command_says_what_it_takes(tmp_path) -> None:
    command = (sys.executable, "-m", "vtryon", "models", "make", str(tmp_path / "x"))
    refused = subprocess.run([*command, "--like", "tiny"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--random" in refused.stderr
    unknown = subprocess.run([*command, "--random", "--like", "z"], capture_output=True, text=True)
    assert "qwen-image-edit-2511" in unknown.stderr
    made = subprocess.run(
        [*command, "--random", "--like", "tiny", "--layers", "1"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    config = json.loads((tmp_path / "x" / "transformer" / "config.json").read_text())
    assert config["num_layers"] == 1
