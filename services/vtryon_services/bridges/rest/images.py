"""`POST /v1/images/edits`: for clients of OpenAI's Images API, whose first picture is the person.

Source of the fields: the API reference of `images.edit`. What can't be honoured is refused by name;
`model` and `user` are not looked at, a mesh has one checkpoint.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from vtryon.client import Client
from vtryon.events import Event, Preview
from vtryon.pictures import Picture
from vtryon.run import Result, Run
from vtryon.types import ImageFormat, PreviewPolicy, Stage
from vtryon_services.bridges.rest.answers import frame, left_with, stream
from vtryon_services.bridges.rest.bodies import FORM, Sampled, read_form
from vtryon_services.bridges.rest.documents import PROBLEMS, Responses, body_of
from vtryon_services.bridges.rest.doors import DoorsOf, SettingsOf
from vtryon_services.bridges.rest.problems import request_id_of
from vtryon_services.runtime.ranges import PromptRanges, field_error

router = APIRouter(tags=["openai"])
_DEFAULT_STEPS = 40
_ANSWERS: Responses = {
    200: {
        "description": "`data[].b64_json`; with `stream`, events `image_edit.…`.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    **PROBLEMS,
}


class ImageEdit(PromptRanges, Sampled):
    """The form of `images.edit`, and what a try-on can be told besides."""

    image: list[str] = Field(
        default=[],
        json_schema_extra={"items": {"format": "binary"}},
        description="Or `image[]`: the person, then up to three garments.",
    )
    model: str | None = Field(default=None, description="Not looked at.")
    user: str | None = Field(default=None, description="Not looked at.")
    n: int = Field(default=1, ge=1, le=4)
    size: str = Field(default="auto", pattern=r"^(auto|[1-9]\d{1,4}x[1-9]\d{1,4})$")
    output_format: ImageFormat = ImageFormat.PNG
    output_compression: int | None = Field(default=None, ge=1, le=100)
    response_format: Literal["b64_json"] = "b64_json"
    background: Literal["auto", "opaque"] = "auto"
    quality: Literal["auto"] = "auto"
    stream: bool = False
    partial_images: int = Field(default=0, ge=0, le=3)

    def options(self) -> dict[str, Any]:
        """Give the arguments of `vtryon.Client.try_on`."""
        width, height = self.width, self.height
        if self.size != "auto":
            width, height = map(int, self.size.split("x"))
        lossless = self.output_format is ImageFormat.PNG
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "steps": self.steps,
            "true_cfg_scale": self.true_cfg_scale,
            "strength": self.strength,
            "sigmas": self.sigmas,
            "width": width,
            "height": height,
            "numerics": self.own_numerics(),
            "format": self.output_format,
            "quality": None if lossless else self.output_compression,
            "timeout_seconds": self.timeout_seconds,
        }


@router.post(
    "/v1/images/edits",
    responses=_ANSWERS,
    openapi_extra=body_of({FORM: ImageEdit}),
    response_class=Response,
)
async def edit(request: Request, doors: DoorsOf, settings: SettingsOf) -> Response:
    """Do what OpenAI's clients call an edit: the first picture is the person."""
    form = await read_form(request)
    pictures = form.pictures("image", least=1)
    fields = form.read(ImageEdit)
    client = doors.to(Stage.PIPELINE, request)
    if not fields.stream:
        return await _wait(request, client, fields, pictures)
    if fields.n != 1:
        raise field_error("n", "a stream has one picture")
    run = client.try_on(
        pictures[0],
        pictures[1:],
        **fields.options(),
        seed=fields.seed,
        previews=_previews(fields),
        request_id=request_id_of(request),
    )
    told = 0

    def each(event: Event) -> bytes | None:
        nonlocal told
        if not isinstance(event, Preview) or event.picture is None or told == fields.partial_images:
            return None
        told += 1
        own = _named(event.picture, "image_edit.partial_image", partial_image_index=told - 1)
        return frame("image_edit.partial_image", own)

    def last(result: Result) -> bytes:
        return frame("image_edit.completed", _named(result.picture, "image_edit.completed"))

    return await stream(request, run, last, each, keepalive_seconds=settings.keepalive_seconds)


def _previews(fields: ImageEdit) -> PreviewPolicy | bool:
    """Spread the previews that were asked for over the steps."""
    if not fields.partial_images:
        return False
    steps = len(fields.sigmas) or fields.steps or _DEFAULT_STEPS
    return PreviewPolicy(every_steps=max(1, steps // (fields.partial_images + 1)))


async def _wait(
    request: Request, client: Client, fields: ImageEdit, pictures: Sequence[bytes]
) -> Response:
    """Draw `n` pictures at once; with a seed, the next ones have the next seeds."""
    runs: list[Run[Result]] = [
        client.try_on(
            pictures[0],
            pictures[1:],
            **fields.options(),
            seed=None if fields.seed is None else fields.seed + number,
            previews=False,
            request_id=request_id_of(request),
        )
        for number in range(fields.n)
    ]
    async with left_with(request, *runs):
        results = await asyncio.gather(*runs)
    data = [{"b64_json": _base64(result.picture)} for result in results]
    return JSONResponse({**_common(results[0].picture), "data": data})


def _named(picture: Picture, kind: str, **facts: int) -> dict[str, Any]:
    return {"type": kind, "b64_json": _base64(picture), **_common(picture), **facts}


def _common(picture: Picture) -> dict[str, Any]:
    width, height = picture.size
    return {
        "created": int(time.time()),
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": picture.format,
        "quality": "auto",
        "size": f"{width}x{height}",
    }


def _base64(picture: Picture) -> str:
    return base64.b64encode(picture.data).decode()
