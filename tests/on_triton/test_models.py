"""Every model answers tritonclient's plain style of call: names, arrays, parameters, no SDK."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as grpcclient
from PIL import Image
from tests.support.triton import export_shipped, triton_server
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def png(picture: Image.Image) -> np.ndarray:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return np.frombuffer(buffer.getvalue(), np.uint8)[None]


def inputs(**arrays: np.ndarray) -> list[Any]:
    found = []
    for name, array in arrays.items():
        tensor = grpcclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


@pytest.fixture
async def plain(triton):
    client = grpcclient.InferenceServerClient(triton.grpc)
    yield client
    await client.close()


async def encode(plain, picture: Image.Image) -> np.ndarray:
    return (await plain.infer("latent_encoder", inputs(PICTURE=png(picture)))).as_numpy("LATENTS")


async def test_a_picture_goes_the_whole_way_by_plain_calls(plain, client, example) -> None:
    person, garment = await encode(plain, example.person), await encode(plain, example.garment)
    assert person.shape == (1, 16, 16, 12)
    text = np.frombuffer(example.prompt.encode(), np.uint8)[None]
    pictures = {"PICTURE_1": png(example.person), "PICTURE_2": png(example.garment)}
    embedded = await plain.infer("text_encoder", inputs(PROMPT=text, **pictures))
    embeddings = embedded.as_numpy("EMBEDDINGS")
    assert embedded.as_numpy("NEGATIVE_EMBEDDINGS") is None
    given = inputs(EMBEDDINGS=embeddings, REFERENCE_1=person, REFERENCE_2=garment)
    parameters = {"steps": 4, "seed": 7, "preview_every": 2, "resume_every": 2}

    async def requests():
        yield {"model_name": "sampling", "inputs": given, "parameters": parameters}

    steps, previews, resumes, latents = [], [], [], None
    async for result, error in plain.stream_infer(requests()):
        assert error is None
        [[step]] = result.as_numpy("STEP")
        steps.append(step)
        previews += [step] * (result.as_numpy("PREVIEW") is not None)
        resumes += [step] * (result.as_numpy("RESUME_LATENTS") is not None)
        latents = result.as_numpy("LATENTS")
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    assert (steps, previews, resumes) == ([1, 2, 3, 4], [2, 4], [2])
    assert latents is not None

    decoded = await plain.infer("decoding", inputs(LATENTS=latents), parameters={"format": "png"})
    drawn = np.asarray(Image.open(io.BytesIO(decoded.as_numpy("PICTURE").tobytes())))
    assert decoded.as_numpy("SIZE").tolist() == [[96, 128]]
    here = await client.try_on(example.person, example.garment, example.prompt, steps=4, seed=7)
    assert np.abs(drawn.astype(int) - here.picture.to_numpy()).max() <= 1


async def test_what_cannot_be_is_refused_with_our_reason(plain, example) -> None:
    nonsense = np.frombuffer(b"no picture", np.uint8)[None]
    with pytest.raises(InferenceServerException, match="PICTURE_FORMAT_UNSUPPORTED") as caught:
        await plain.infer("latent_encoder", inputs(PICTURE=nonsense))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    person = await encode(plain, example.person)
    given = inputs(EMBEDDINGS=np.zeros((1, 3, 128), np.float32), REFERENCE_1=person)

    async def requests():
        yield {"model_name": "sampling", "inputs": given, "parameters": {"steps": 1000}}

    async for result, error in plain.stream_infer(requests()):
        assert result is None
        assert "FIELD_INVALID" in error.message()
        break


BAD = {
    "a size over the limit": ({}, {"width": 16384, "height": 16384}, "FIELD_INVALID"),
    "a size that is no multiple": ({}, {"width": 97, "height": 128}, "FIELD_INVALID"),
    "a word for a number": ({}, {"steps": "many"}, "FIELD_INVALID"),
    "an unknown urgency": ({}, {"urgency": "now"}, "FIELD_INVALID"),
    "numerics that are no JSON": ({}, {"numerics": "{"}, "FIELD_INVALID"),
    "sigmas that rise": ({}, {"sigmas": "[0.5, 1.0]"}, "FIELD_INVALID"),
    "too many pixels of a preview": ({}, {"preview_max_pixels": 2**40}, "FIELD_INVALID"),
    "a parameter that there is not": ({}, {"strengths": 0.5}, "no parameter strengths"),
    "no width": ({}, {"width": 0}, "FIELD_INVALID"),
    "no time": ({}, {"timeout_seconds": 0.0}, "FIELD_INVALID"),
    "a fraction of a step": ({}, {"steps": 1.5}, "FIELD_INVALID"),
    "another model's digest": ({}, {"sampling_digest": "another"}, "MODEL_CHANGED"),
    "a resume point without latents": ({}, {"resume_step": 1}, "FIELD_INVALID"),
    "a resume point of some model": (
        {"RESUME": np.zeros((1, 16, 16, 12), np.float32)},
        {"steps": 2, "resume_step": 1},
        "sampling_digest",
    ),
    "NaN": ({"EMBEDDINGS": np.full((1, 3, 128), np.nan, np.float32)}, {}, "TENSOR_NOT_FINITE"),
    "odd sides": (
        {"REFERENCE_1": np.zeros((1, 16, 15, 12), np.float32)},
        {"width": 96, "height": 128},
        "PAYLOAD_INVALID",
    ),
    "noise of another size": (
        {"NOISE": np.zeros((1, 16, 8, 8), np.float32)},
        {},
        "PAYLOAD_INVALID",
    ),
    "too many tokens": (
        {"EMBEDDINGS": np.zeros((1, 4097, 128), np.float32)},
        {},
        "PAYLOAD_INVALID",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_of_the_sampler_is_refused_and_the_next_request_works(
    plain, name: str
) -> None:
    tensors, parameters, reason = BAD[name]
    good = {
        "EMBEDDINGS": np.zeros((1, 3, 128), np.float32),
        "REFERENCE_1": np.zeros((1, 16, 16, 12), np.float32),
    }

    async def ask(given: dict, wanted: dict) -> tuple[Any, Any]:
        async def requests():
            yield {"model_name": "sampling", "inputs": inputs(**given), "parameters": wanted}

        async for answer in plain.stream_infer(requests()):
            return answer
        raise AssertionError("no answer")

    result, error = await ask({**good, **tensors}, {"steps": 1, **parameters})
    assert result is None
    assert reason in error.message()
    result, error = await ask(good, {"steps": 1})
    assert error is None


async def test_the_other_models_refuse_unknown_parameters_and_other_digests_too(
    plain, example
) -> None:
    asked = {
        "latent_encoder": inputs(PICTURE=png(example.person)),
        "text_encoder": inputs(PROMPT=np.frombuffer(b"a shirt", np.uint8)[None]),
        "decoding": inputs(LATENTS=np.zeros((1, 16, 16, 12), np.float32)),
    }
    for model, given in asked.items():
        for parameters, said in (
            ({"strengths": 0.5}, "no parameter strengths"),
            ({f"{model}_digest": "another"}, "MODEL_CHANGED"),
        ):
            with pytest.raises(InferenceServerException, match=said):
                await plain.infer(model, given, parameters=parameters)
        await plain.infer(model, given)


async def test_one_bad_picture_among_many_fails_alone(plain, example) -> None:
    async def ask(array: np.ndarray) -> object:
        return await plain.infer("latent_encoder", inputs(PICTURE=array))

    bad = np.frombuffer(b"\x89PNG but not for long", np.uint8)[None]
    pictures = [png(example.person), bad, png(example.garment), bad, png(example.person)]
    found = await asyncio.gather(*map(ask, pictures), return_exceptions=True)
    failed = [isinstance(one, InferenceServerException) for one in found]
    assert failed == [False, True, False, True, False]
    np.testing.assert_allclose(
        found[0].as_numpy("LATENTS"), found[4].as_numpy("LATENTS"), atol=1e-4
    )


def try_on(example, **parameters: Any) -> dict[str, Any]:
    """A request of the ensemble."""
    text = np.frombuffer(example.prompt.encode(), np.uint8)[None]
    nothing = np.empty((1, 0), np.uint8)
    given = inputs(
        PERSON=png(example.person),
        GARMENT_1=png(example.garment),
        GARMENT_2=nothing,
        GARMENT_3=nothing,
        PROMPT=text,
        NEGATIVE_PROMPT=nothing,
        NEGATIVE_GIVEN=nothing,
        RESIZE=nothing,
    )
    return {"model_name": "tryon", "inputs": given, "parameters": parameters}


async def test_the_ensemble_streams_its_steps_and_ends_with_the_picture(
    plain, client, example
) -> None:
    async def requests():
        yield try_on(example, steps=4, seed=7, preview_every=2)

    steps, previews, pictures = [], [], []
    async for result, error in plain.stream_infer(requests()):
        assert error is None
        steps.append(int(result.as_numpy("STEP")[0, 0]))
        previews += [steps[-1]] * (result.as_numpy("PREVIEW") is not None)
        if (picture := result.as_numpy("PICTURE")) is not None:
            pictures.append(np.asarray(Image.open(io.BytesIO(picture.tobytes()))))
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    assert (steps, previews) == ([1, 2, 3, 4], [2, 4])
    [drawn] = pictures
    here = await client.try_on(example.person, example.garment, example.prompt, steps=4, seed=7)
    assert np.abs(drawn.astype(int) - here.picture.to_numpy()).max() <= 1


async def test_a_response_cache_tells_ways_to_resize_apart(tmp_path, example) -> None:
    """Triton's cache knows inputs alone, so what changes a result is one."""
    folder = export_shipped(tmp_path / "cached", threads=1, response_cache=True)
    picture = png(example.person.resize((300, 400)))
    with triton_server(folder, tmp_path / "server.log", cache_bytes=2**26) as running:
        client = grpcclient.InferenceServerClient(running.grpc)
        found, hits = {}, 0
        while hits < 2:  # the server may keep a result after it has given it
            for way in ("lanczos", "area"):
                text = np.frombuffer(way.encode(), np.uint8)[None]
                given = inputs(PICTURE=picture, RESIZE=text)
                latents = (await client.infer("latent_encoder", given)).as_numpy("LATENTS")
                np.testing.assert_array_equal(found.setdefault(way, latents), latents)
            statistics = await client.get_inference_statistics("latent_encoder")
            hits = statistics.model_stats[0].inference_stats.cache_hit.count
        await client.close()
    assert np.abs(found["lanczos"] - found["area"]).max() > 0.01
