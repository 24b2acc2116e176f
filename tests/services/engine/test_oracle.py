"""The whole mesh draws the picture that diffusers' own pipeline draws."""

import pytest
from PIL import Image
from tests.support.checkpoints import random_checkpoint, with_geometry
from tests.support.pictures import difference

import vtryon
from vtryon.embedded import embedded_mesh
from vtryon_loadtests.diffusers_pipeline import diffusers_pipeline, draw, reference_area
from vtryon_services.engine.geometry import Geometry
from vtryon_services.mannequin.triples import held_out

AREA = 96 * 128
GEOMETRY = Geometry(reference_area=AREA, condition_area=AREA, max_target_area=512 * 512)


@pytest.fixture(scope="module", params=["mannequin", "random", "random, zero_cond_t"])
async def pair(request, tmp_path_factory):
    """A client of an embedded mesh, and the oracle, on one checkpoint."""
    folder = tmp_path_factory.mktemp("oracle") / "checkpoint"
    if request.param == "mannequin":
        with_geometry(folder, GEOMETRY)
    else:
        random_checkpoint(folder, GEOMETRY, zero_cond_t="zero_cond_t" in request.param)
    with reference_area(AREA):
        async with embedded_mesh(checkpoint=folder) as target, vtryon.Client(target) as client:
            yield client, diffusers_pipeline(folder)


def pictures(shape: str, references: int) -> list[Image.Image]:
    example = held_out(3)
    both = [example.person, example.garment][:references]
    if shape == "mixed":
        return [both[0], both[1].crop((0, 32, 96, 96))]
    if shape == "square":
        return [picture.crop((0, 16, 96, 112)) for picture in both]
    return both


@pytest.mark.parametrize("guidance", [None, 4.0])
@pytest.mark.parametrize(
    ("shape", "references"),
    [("square", 1), ("square", 2), ("portrait", 1), ("portrait", 2), ("mixed", 2)],
)
async def test_the_mesh_draws_what_diffusers_draws(
    pair, shape: str, references: int, guidance: float | None
) -> None:
    client, pipeline = pair
    person, *garments = pictures(shape, references)
    wanted = {"prompt": held_out(3).prompt, "true_cfg_scale": guidance or 1.0}
    if guidance:
        wanted["negative_prompt"] = "blurry, striped"
    result = await client.try_on(person, garments, steps=4, seed=11, **wanted)
    width, height = result.picture.size
    theirs = draw(
        pipeline,
        [person, *garments],
        num_inference_steps=4,
        seed=11,
        width=width,
        height=height,
        **wanted,
    )
    assert difference(result.picture.to_pil(), theirs) <= 1


async def test_another_target_size_is_drawn_alike_too(pair) -> None:
    client, pipeline = pair
    person, garment = pictures("portrait", 2)
    wanted = {"prompt": "a red shirt", "width": 144, "height": 112, "true_cfg_scale": 1.0}
    result = await client.try_on(person, garment, steps=2, seed=2, **wanted)
    theirs = draw(pipeline, [person, garment], num_inference_steps=2, seed=2, **wanted)
    assert result.picture.size == (144, 112)
    assert difference(result.picture.to_pil(), theirs) <= 1
