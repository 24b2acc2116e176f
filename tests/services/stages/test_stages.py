"""Each stage alone, and all of them in a row: the same picture as the pipeline's."""

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.checkpoints import without_preview_map
from tests.support.pictures import png

import vtryon
from vtryon import Conditioning, Embeddings, Preview, SampleStart, Tensor
from vtryon.embedded import embedded_mesh
from vtryon.errors import Reason, RequestError
from vtryon.events import ResumeChunk
from vtryon.types import (
    DataType,
    GuidanceNorm,
    ImageFormat,
    Profile,
    ResizeFilter,
    ResumePoint,
    RopeLayout,
    SigmaSchedule,
    TensorSpec,
)
from vtryon_services.engine.latent_encoder import VaeEncoder

START = SampleStart(width=96, height=128, steps=4, seed=5)


async def conditioning(client: vtryon.Client, example, negative: str | None = None) -> Conditioning:
    pictures = [example.person, example.garment]
    embeddings = await client.text_encoder.encode(
        example.prompt, pictures, negative_prompt=negative
    )
    references = await client.latent_encoder.encode(pictures)
    return Conditioning(embeddings, references)


async def test_the_stages_by_hand_draw_what_the_pipeline_draws(client, example) -> None:
    latents = await client.sampling.sample(START, await conditioning(client, example))
    picture = await client.decoding.decode(latents)
    result = await client.try_on(example.person, example.garment, example.prompt, steps=4, seed=5)
    assert picture.data == result.picture.data


async def test_shapes_and_element_types_are_those_of_the_contract(client, example) -> None:
    given = await conditioning(client, example, negative="")
    positive, negative = given.embeddings.positive.to_numpy(), given.embeddings.negative.to_numpy()
    assert positive.shape[1] == negative.shape[1] == 128
    assert len(positive) > len(negative)
    assert all(item.to_numpy().shape == (16, 16, 12) for item in given.references)
    assert all(item.spec.data_type == "FP32" for item in given.references)


async def test_a_noise_payload_stands_in_for_a_seed(client, example) -> None:
    from vtryon_services.engine.latents import draw_noise

    given = await conditioning(client, example)
    noise = Tensor.from_numpy(draw_noise(5, 16, 16, 12).numpy())
    by_noise = Conditioning(given.embeddings, given.references, noise=noise)
    start = SampleStart(width=96, height=128, steps=4)
    one = await client.sampling.sample(start, by_noise)
    other = await client.sampling.sample(START, given)
    np.testing.assert_array_equal(one.to_numpy(), other.to_numpy())


async def test_resumed_equals_uninterrupted(client, example) -> None:
    given = await conditioning(client, example)
    whole = await client.sampling.sample(START, given)
    run = client.sampling.sample(replace(START, resume_every=2), given)
    pieces = [event async for event in run if isinstance(event, ResumeChunk)]
    assert {piece.step for piece in pieces} == {2}
    data = b"".join(piece.data for piece in pieces)
    assert len(data) == pieces[0].byte_length
    middle = Tensor(TensorSpec(DataType.FP32, whole.spec.shape), data)
    resumed = await client.sampling.sample(
        replace(START, resume=pieces[0].point),
        Conditioning(given.embeddings, given.references, resume_latents=middle),
    )
    np.testing.assert_array_equal(resumed.to_numpy(), whole.to_numpy())


async def test_a_resume_point_of_another_model_is_refused(client, example) -> None:
    given = await conditioning(client, example)
    latents = Tensor.from_numpy(np.zeros((16, 16, 12), np.float32))
    resumed = Conditioning(given.embeddings, given.references, resume_latents=latents)
    for digest, reason in [("0" * 64, Reason.MODEL_CHANGED), ("", Reason.FIELD_INVALID)]:
        with pytest.raises(RequestError, match="model_digest") as caught:
            await client.sampling.sample(replace(START, resume=ResumePoint(2, digest)), resumed)
        assert caught.value.reason is reason


@pytest.mark.parametrize("profile", list(Profile))
async def test_guidance_changes_the_latents_only_with_a_negative_prompt(
    client, example, profile
) -> None:
    numerics = vtryon.Numerics(profile=profile)
    plain = await conditioning(client, example)
    guided = await conditioning(client, example, negative="stripes")

    async def sample(given: Conditioning, scale: float) -> np.ndarray:
        start = SampleStart(
            numerics=numerics, width=96, height=128, steps=2, seed=5, true_cfg_scale=scale
        )
        return (await client.sampling.sample(start, given)).to_numpy()

    base = await sample(plain, 1.0)
    np.testing.assert_array_equal(await sample(plain, 4.0), base)
    np.testing.assert_array_equal(await sample(guided, 1.0), base)
    assert np.abs(await sample(guided, 4.0) - base).max() > 1e-3


async def test_previews_follow_the_policy(client, example) -> None:
    given = await conditioning(client, example)

    async def steps_with_previews(policy: vtryon.PreviewPolicy | None) -> list[vtryon.Preview]:
        start = SampleStart(width=96, height=128, steps=4, seed=5, previews=policy)
        run = client.sampling.sample(start, given)
        return [event async for event in run if isinstance(event, vtryon.Preview)]

    assert await steps_with_previews(None) == []
    assert await steps_with_previews(vtryon.PreviewPolicy(every_steps=0)) == []
    every = await steps_with_previews(vtryon.PreviewPolicy(every_steps=1))
    assert [event.step for event in every] == [1, 2, 3, 4]
    assert every[0].picture.to_pil().size == (12, 16)
    second = await steps_with_previews(vtryon.PreviewPolicy(every_steps=2, max_pixels=48))
    assert [event.step for event in second] == [2, 4]
    width, height = second[0].picture.size
    assert width * height <= 48


async def test_previews_that_the_checkpoint_cannot_make_are_said(tmp_path, example) -> None:
    folder = without_preview_map(tmp_path / "checkpoint")
    async with embedded_mesh(checkpoint=folder) as target, vtryon.Client(target) as client:
        for wanted, fields in ((True, ["previews"]), (False, [])):
            run = client.try_on(example.person, example.garment, steps=1, previews=wanted)
            kinds = {type(event) async for event in run}
            assert Preview not in kinds
            assert [one.field for one in (await run).unused_options] == fields


async def test_the_last_preview_looks_like_the_result(client, example) -> None:
    run = client.try_on(example.person, example.garment, example.prompt, seed=1)
    previews = [event async for event in run if isinstance(event, vtryon.Preview)]
    small = (await run).picture.to_pil().resize((12, 16))
    difference = np.abs(previews[-1].picture.to_numpy().astype(int) - np.asarray(small).astype(int))
    assert difference.mean() < 25


async def test_the_same_embeddings_type_comes_back(client, example) -> None:
    assert isinstance(await client.text_encoder.encode("x", []), Embeddings)


async def test_person_and_garment_go_through_the_vae_together(example, monkeypatch) -> None:
    sizes, encode = [], VaeEncoder.encode

    def counted(self: VaeEncoder, pixels: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        sizes.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(VaeEncoder, "encode", counted)
    async with embedded_mesh() as target, vtryon.Client(target) as client:
        both = await client.latent_encoder.encode([example.person, example.garment])
        assert sizes == [2]
        [alone] = await client.latent_encoder.encode([example.garment])
        assert sizes == [2]  # kept
    np.testing.assert_array_equal(both[1].to_numpy(), alone.to_numpy())


async def test_a_broken_picture_is_refused_and_the_other_one_is_kept(example) -> None:
    broken = png()[:-20]
    async with embedded_mesh() as target, vtryon.Client(target) as client:
        with pytest.raises(vtryon.RequestError):
            await client.latent_encoder.encode([example.person, broken])
        [latents] = await client.latent_encoder.encode([example.person])
    assert latents.spec.shape == (16, 16, 12)


async def test_numerics_that_a_stage_does_not_use_are_listed(scripted: vtryon.Client) -> None:
    every = vtryon.Numerics(
        schedule=SigmaSchedule.SIMPLE,
        shift=2.0,
        guidance_norm=GuidanceNorm.NONE,
        resize=ResizeFilter.AREA,
        rope_layout=RopeLayout.COMFY,
    )
    of_sampler = ["guidance_norm", "rope_layout", "schedule", "shift"]
    for run in (
        scripted.latent_encoder.encode([png()], numerics=every),
        scripted.text_encoder.encode("x", [png()], numerics=every),
    ):
        async for event in run:
            if isinstance(event, vtryon.Accepted):
                found = [one.field for one in event.unused_options]
        assert found == [f"numerics.{name}" for name in of_sampler]

    embeddings = await scripted.text_encoder.encode("x", [png()], negative_prompt="y")
    references = await scripted.latent_encoder.encode([png()])
    start = replace(START, steps=1, true_cfg_scale=2.0, numerics=every)
    run = scripted.sampling.sample(start, Conditioning(embeddings, references))
    async for event in run:
        if isinstance(event, vtryon.Accepted):
            assert [one.field for one in event.unused_options] == ["numerics.resize"]
    result = await scripted.try_on(
        png(), steps=1, true_cfg_scale=2.0, negative_prompt="y", numerics=every
    )
    assert result.unused_options == ()  # each stage is told its own


@pytest.mark.parametrize("wanted", [*ImageFormat])
async def test_a_scripted_picture_has_the_format_that_is_asked_for(
    scripted: vtryon.Client, wanted: ImageFormat
) -> None:
    result = await scripted.try_on(png(), png(), steps=1, format=wanted, previews=False)
    assert result.picture.image.format is wanted
    with Image.open(io.BytesIO(result.picture.data)) as picture:
        assert (picture.format, picture.size) == (wanted.name, result.picture.size)
