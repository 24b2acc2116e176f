"""`POST /v1/images/edits`: for clients of OpenAI's Images API, whose first picture is the person.

Source of the fields: the API reference of `images.edit`. Fields that would change the picture but
can't be honoured are rejected by name; fields without effect are ignored and listed in
`x-vtryon-ignored`.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, model_validator

from vtryon.client import Client
from vtryon.events import Event, Preview
from vtryon.files.jsonable import plain
from vtryon.pictures import Picture
from vtryon.run import Result, Run
from vtryon.sampling_options import sampling_fields
from vtryon.types import ImageFormat, PreviewPolicy, Stage
from vtryon_services.bridges.rest.answers import frame, left_with, result_headers, stream
from vtryon_services.bridges.rest.bodies import Sampled
from vtryon_services.bridges.rest.clients import ClientsOf, SettingsOf
from vtryon_services.bridges.rest.documents import (
    DIGESTS,
    IGNORED,
    PROBLEMS,
    UNUSED,
    Responses,
    body_of,
    headers_of,
)
from vtryon_services.bridges.rest.forms import FORM, read_form
from vtryon_services.bridges.rest.problems import request_id_of
from vtryon_services.validation.ranges import PromptRanges, field_error

router = APIRouter(tags=["openai"])
_IGNORED = ("model", "user", "quality", "input_fidelity", "moderation")
_ANSWERS: Responses = {
    200: {
        "description": "`data[].b64_json`; with `stream`, events `image_edit.…`.",
        "headers": headers_of("x-vtryon-seed", "server-timing", DIGESTS, UNUSED, IGNORED),
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    **PROBLEMS,
}
_NOT_USED = "Changes nothing here; ignored."


class ImageEdit(PromptRanges, Sampled):
    """The form of `images.edit`, and additional fields of a try-on."""

    image: list[str] = Field(
        default=[],
        json_schema_extra={"items": {"format": "binary"}},
        description="Or `image[]`: the person, then up to three garments.",
    )
    model: str | None = Field(default=None, max_length=256, description=_NOT_USED)
    user: str | None = Field(default=None, max_length=256, description=_NOT_USED)
    quality: str | None = Field(default=None, max_length=32, description=_NOT_USED)
    input_fidelity: Literal["high", "low"] | None = Field(default=None, description=_NOT_USED)
    moderation: Literal["auto", "low"] | None = Field(default=None, description=_NOT_USED)
    n: int = Field(default=1, ge=1, le=4)
    size: str = Field(default="auto", pattern=r"^(auto|[1-9]\d{1,4}x[1-9]\d{1,4})$")
    output_format: ImageFormat = ImageFormat.PNG
    output_compression: int | None = Field(
        default=None, ge=0, le=100, description="Of JPEG and WebP; a PNG has none."
    )
    response_format: Literal["b64_json"] = "b64_json"
    background: Literal["auto", "opaque"] = "auto"
    stream: bool = False
    partial_images: int = Field(default=0, ge=0, le=3)

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.size != "auto" and (self.width is not None or self.height is not None):
            raise ValueError("size is width and height: give one or the other")
        return self

    @property
    def lossless(self) -> bool:
        """Whether the picture's format has no quality to choose."""
        return self.output_format is ImageFormat.PNG

    @property
    def ignored(self) -> list[str]:
        """Fields of the request without effect."""
        names = [name for name in _IGNORED if name in self.model_fields_set]
        if self.lossless and self.output_compression is not None:
            names.append("output_compression")
        if self.partial_images and not self.stream:
            names.append("partial_images")
        return names

    def options(self) -> dict[str, Any]:
        """Give the arguments of `vtryon.Client.try_on`."""
        width, height = self.width, self.height
        if self.size != "auto":
            width, height = map(int, self.size.split("x"))
        quality = None if self.lossless else self.output_compression
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            **sampling_fields(self),
            "width": width,
            "height": height,
            "numerics": self.own_numerics(),
            "loras": self.own_loras(),
            "priority": self.priority,
            "format": self.output_format,
            # Their range begins at 0, the encoders' at 1.
            "quality": None if quality is None else max(1, quality),
            "timeout_seconds": self.timeout_seconds,
        }


@router.post(
    "/v1/images/edits",
    responses=_ANSWERS,
    openapi_extra=body_of({FORM: ImageEdit}),
    response_class=Response,
)
async def edit(request: Request, clients: ClientsOf, settings: SettingsOf) -> Response:
    """Run a try-on for OpenAI's clients: the first picture is the person."""
    form = await read_form(request, "image")
    pictures = form.pictures("image", least=1)
    fields = form.read(ImageEdit)
    client = clients.to(Stage.PIPELINE, request)
    if not fields.stream:
        return await _wait(request, client, fields, pictures)
    if fields.n != 1:
        raise field_error("n", "a stream has one picture")
    run = client.try_on(
        pictures[0],
        pictures[1:],
        **fields.options(),
        # Each of them says how many steps there are: then it is known which are wanted.
        previews=PreviewPolicy(every_steps=1) if fields.partial_images else False,
        request_id=request_id_of(request),
    )

    def last(result: Result) -> bytes:
        own = _named(result.picture, "image_edit.completed")
        return frame("image_edit.completed", {**own, **_how(result)})

    return await stream(
        request,
        run,
        last,
        _partial_images(fields.partial_images),
        keepalive_seconds=settings.keepalive_seconds,
        headers=_ignored(request, fields),
    )


def _ignored(request: Request, fields: ImageEdit) -> dict[str, str]:
    """List, in a header, fields without effect and headers of other routes."""
    headers = [name for name in ("idempotency-key", "prefer") if name in request.headers]
    names = [*fields.ignored, *headers]
    return {IGNORED: ", ".join(names)} if names else {}


def _partial_images(count: int) -> Callable[[Event], bytes | None]:
    """Choose so many previews, spread over the steps that the server runs."""
    shown = 0

    def each(event: Event) -> bytes | None:
        nonlocal shown
        if not isinstance(event, Preview) or event.picture is None or shown == count:
            return None
        if event.step < event.steps * (shown + 1) // (count + 1):
            return None
        own = _named(event.picture, "image_edit.partial_image", partial_image_index=shown)
        shown += 1
        return frame("image_edit.partial_image", own)

    return each


async def _wait(
    request: Request, client: Client, fields: ImageEdit, pictures: Sequence[bytes]
) -> Response:
    """Draw `n` pictures at once; with a seed, the next ones have the next seeds."""
    runs: list[Run[Result]] = [
        client.try_on(
            pictures[0],
            pictures[1:],
            **{**fields.options(), "seed": None if fields.seed is None else fields.seed + number},
            previews=False,
            request_id=request_id_of(request),
        )
        for number in range(fields.n)
    ]
    async with left_with(request, *runs):
        results = await asyncio.gather(*runs)
    data = [{"b64_json": _base64(result.picture), **_how(result)} for result in results]
    # Of several pictures, headers tell of the first; `data` tells of each.
    headers = {**_ignored(request, fields), **result_headers(results[0])}
    return JSONResponse({**_common(results[0].picture), "data": data}, headers=headers)


def _how(result: Result) -> dict[str, Any]:
    """Describe how a picture was made, in addition to OpenAI's fields."""
    return {
        "seed": result.seed,
        "fits": plain(result.fits),
        "unused_options": plain(result.unused_options),
        "model_digests": result.model_digests,
    }


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
