"""LoRAs chosen by requests: the pictures of a checkpoint with the LoRA merged."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from tests.support.checkpoints import PARTS
from tests.support.loras import WEIGHTS, make_lora
from tests.support.pictures import difference

import vtryon
from vtryon.embedded import embedded_mesh
from vtryon.types import Profile
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT
from vtryon_services.mannequin.triples import Example

STRENGTH = 0.6


class Meshes(NamedTuple):
    """Targets of a mesh with a LoRA, and of one whose weights have it merged at `STRENGTH`."""

    with_lora: str
    merged: str
    file: Path


def merged_checkpoint(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    for name in (*PARTS, "model_index.json", "geometry.json"):
        if name != "transformer":
            (folder / name).symlink_to(SHIPPED_CHECKPOINT / name)
    (folder / "transformer").mkdir()
    shutil.copy(SHIPPED_CHECKPOINT / "transformer" / "config.json", folder / "transformer")
    save_file(weights, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
async def meshes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Meshes]:
    folder = tmp_path_factory.mktemp("loras")
    file = folder / "silk-lightning-2steps.safetensors"
    other = merged_checkpoint(folder / "merged", make_lora(file, STRENGTH))
    async with (
        embedded_mesh(loras={"silk": file}) as with_lora,
        embedded_mesh(checkpoint=other) as merged,
    ):
        yield Meshes(with_lora, merged, file)


async def test_requests_together_have_the_pictures_of_merged_weights(
    meshes: Meshes, example: Example
) -> None:
    """With, without and at another strength at once; and digests that tell them apart."""
    both = example.person, example.garment
    given = {"prompt": example.prompt, "steps": 4, "seed": 3, "profile": "diffusers"}
    silk = [vtryon.Lora("silk", STRENGTH)]
    async with vtryon.Client(meshes.with_lora) as client, vtryon.Client(meshes.merged) as merged:
        applied, plain, off, more = await asyncio.gather(
            client.try_on(*both, loras=silk, **given),
            client.try_on(*both, **given),
            client.try_on(*both, loras=[vtryon.Lora("silk", 0.0)], **given),
            client.try_on(*both, loras=[vtryon.Lora("silk")], **given),
        )
        alone = await merged.try_on(*both, **given)
    assert difference(applied.picture.to_pil(), alone.picture.to_pil()) <= 1
    assert difference(applied.picture.to_pil(), plain.picture.to_pil()) > 8
    assert off.picture.data == plain.picture.data
    assert [one.field for one in off.unused_options] == ["loras"]
    digests = [one.model_digests["sampling"] for one in (applied, plain, off, more)]
    assert digests[1] == digests[2]
    assert len(set(digests)) == 3


async def test_a_distilled_lora_brings_its_schedule(meshes: Meshes, example: Example) -> None:
    """Its file's name says Lightning and two steps; what the request says comes first."""
    silk = [vtryon.Lora("silk")]
    async with vtryon.Client(meshes.with_lora) as client:
        chosen = await client.try_on(example.person, example.garment, loras=silk)
        own = await client.try_on(example.person, example.garment, loras=silk, profile="comfy")
        steps = await client.try_on(example.person, example.garment, loras=silk, steps=3)
    sampled = [one.stages["sampling"] for one in (chosen, own, steps)]
    profiles = [Profile.LIGHTNING, Profile.COMFY, Profile.LIGHTNING]
    assert [one.numerics.profile for one in sampled] == profiles
    assert (sampled[0].steps, sampled[2].steps) == (2, 3)
    assert sampled[0].true_cfg_scale == 1.0
    assert sampled[1].steps != 2


@pytest.mark.parametrize(
    ("loras", "words"),
    [
        ([vtryon.Lora("wool")], "no LoRA 'wool'; those of its setting `loras`: silk"),
        ([vtryon.Lora("")], "loras.0.name"),
        ([vtryon.Lora(f"wool-{number}") for number in range(9)], "at most 8 items"),
    ],
)
async def test_loras_that_the_server_does_not_have_are_refused(
    meshes: Meshes, example: Example, loras: list[vtryon.Lora], words: str
) -> None:
    async with vtryon.Client(meshes.with_lora) as client:
        with pytest.raises(vtryon.RequestError, match=words) as caught:
            await client.try_on(example.person, example.garment, loras=loras)
    assert caught.value.violations[0].field.startswith("loras")


def test_arguments_of_another_type_are_refused_at_once() -> None:
    client = vtryon.Client("127.0.0.1:1")
    for loras in ("silk", {"silk": 1.0}, ["silk"]):
        with pytest.raises(vtryon.RequestError, match="loras: takes"):
            client.try_on(b"", b"", loras=loras)
