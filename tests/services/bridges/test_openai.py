"""OpenAI's own client against `/v1/images/edits`."""

from __future__ import annotations

import base64
import io

import openai
import pytest
from PIL import Image
from tests.support.bad_input import PICTURE
from tests.support.pictures import decoded

IMAGES = [("person.png", PICTURE, "image/png"), ("garment.png", PICTURE, "image/png")]


@pytest.fixture
async def api(rest: str):
    async with openai.AsyncOpenAI(base_url=f"{rest}/v1", api_key="none", max_retries=0) as api:
        yield api


async def test_edit(drawing_rest: str) -> None:
    api = openai.AsyncOpenAI(base_url=f"{drawing_rest}/v1", api_key="none", max_retries=0)
    edited = await api.images.edit(
        model="gpt-image-1",
        image=IMAGES,
        prompt="wear it",
        n=2,
        size="auto",
        output_format="webp",
        extra_body={"steps": 2, "seed": 3},
    )
    assert edited.output_format == "webp"
    pictures = [base64.b64decode(one.b64_json) for one in edited.data]
    assert len(pictures) == 2
    assert decoded(pictures[0]).shape[2] == 3
    await api.close()
    assert edited.size == "x".join(map(str, decoded(pictures[0]).shape[1::-1]))


async def test_streamed(api: openai.AsyncOpenAI) -> None:
    events = await api.images.edit(
        image=IMAGES,
        prompt="wear it",
        stream=True,
        partial_images=2,
        extra_body={"steps": 6},
    )
    kinds, indices = [], []
    async for event in events:
        kinds.append(event.type)
        assert base64.b64decode(event.b64_json)
        indices.append(getattr(event, "partial_image_index", None))
    assert kinds == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert indices == [0, 1, None]


async def test_what_cannot_be_honoured_is_refused_by_name(api: openai.AsyncOpenAI) -> None:
    for field, value in (
        ("background", "transparent"),
        ("style", "vivid"),
        ("size", "100x100"),
        ("response_format", "url"),
        ("n", 5),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await api.images.edit(image=IMAGES, prompt="wear it", extra_body={field: value})
        fields = [one["field"] for one in caught.value.body["violations"]]
        assert fields == ([field] if field != "size" else ["width", "height"])
    with pytest.raises(openai.BadRequestError, match="size is width and height"):
        both = {"size": "64x64", "width": 96}
        await api.images.edit(image=IMAGES, prompt="wear it", extra_body=both)
    with pytest.raises(openai.BadRequestError, match="mask"):
        await api.images.edit(image=IMAGES, prompt="wear it", mask=IMAGES[0])


async def test_what_changes_nothing_is_ignored_and_listed(api: openai.AsyncOpenAI) -> None:
    answer = await api.images.with_raw_response.edit(
        image=IMAGES,
        prompt="wear it",
        model="gpt-image-1",
        user="somebody",
        quality="high",
        input_fidelity="low",
        background="opaque",
        output_compression=40,
        extra_body={"steps": 1, "moderation": "low", "partial_images": 2},
        extra_headers={"idempotency-key": "4711", "prefer": "respond-async"},
    )
    listed = answer.headers["x-vtryon-ignored"].split(", ")
    assert set(listed) == {
        *("model", "user", "quality", "input_fidelity", "moderation"),
        *("output_compression", "partial_images", "idempotency-key", "prefer"),
    }
    plain = await api.images.with_raw_response.edit(
        image=IMAGES, prompt="wear it", extra_body={"steps": 1}
    )
    assert "x-vtryon-ignored" not in plain.headers


@pytest.mark.parametrize(
    ("output_format", "compression"), [("png", 0), ("png", 100), ("jpeg", 0), ("webp", 0)]
)
async def test_compression_has_the_range_of_their_interface(
    drawing_rest: str, output_format: str, compression: int
) -> None:
    how = {"output_format": output_format, "output_compression": compression}
    async with openai.AsyncOpenAI(base_url=f"{drawing_rest}/v1", api_key="none") as api:
        edited = await api.images.edit(
            image=IMAGES, prompt="wear it", extra_body={"steps": 1, "seed": 1}, **how
        )
        drawn = base64.b64decode(edited.data[0].b64_json)
        with Image.open(io.BytesIO(drawn)) as picture:
            assert picture.format.lower() == output_format
        if output_format == "jpeg":
            best = await api.images.edit(
                image=IMAGES,
                prompt="wear it",
                output_format="jpeg",
                output_compression=100,
                extra_body={"steps": 1, "seed": 1},
            )
            assert len(drawn) < len(base64.b64decode(best.data[0].b64_json))


@pytest.mark.parametrize(("count", "steps"), [(2, None), (3, None), (2, 8), (3, 4), (1, 4), (3, 2)])
async def test_as_many_partial_images_as_were_asked_for(
    drawing_rest: str, count: int, steps: int | None
) -> None:
    extra = {} if steps is None else {"steps": steps}
    async with openai.AsyncOpenAI(base_url=f"{drawing_rest}/v1", api_key="none") as api:
        events = await api.images.edit(
            image=IMAGES, prompt="wear it", stream=True, partial_images=count, extra_body=extra
        )
        kinds = [event.type async for event in events]
    assert kinds[-1] == "image_edit.completed"
    assert kinds.count("image_edit.partial_image") == min(count, steps or count)
