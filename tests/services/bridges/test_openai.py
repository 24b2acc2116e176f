"""OpenAI's own client against `/v1/images/edits`."""

from __future__ import annotations

import base64

import openai
import pytest
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
        ("quality", "high"),
        ("size", "100x100"),
        ("response_format", "url"),
        ("n", 5),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await api.images.edit(image=IMAGES, prompt="wear it", **{field: value})
        fields = [one["field"] for one in caught.value.body["violations"]]
        assert fields == ([field] if field != "size" else ["width", "height"])
    with pytest.raises(openai.BadRequestError, match="mask"):
        await api.images.edit(image=IMAGES, prompt="wear it", mask=IMAGES[0])
