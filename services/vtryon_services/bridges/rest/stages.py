"""`/v1/stages/…`: each stage alone. Tensors go in and out as `vtryon stage` has them in files."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from vtryon.events import Accepted
from vtryon.files.tensors import (
    conditioning,
    dump,
    load,
    name_embeddings,
    name_latents,
    only_latents,
)
from vtryon.run import Run
from vtryon.sampling_options import sampling_fields
from vtryon.tensors import Tensor
from vtryon.types import SampleStart, Stage
from vtryon_services.bridges.rest.accept import wanted_format
from vtryon_services.bridges.rest.answers import (
    digests_header,
    left_with,
    picture_answer,
    unused_header,
)
from vtryon_services.bridges.rest.bodies import Encoded, Profiled, Sampled, Timed
from vtryon_services.bridges.rest.clients import ClientsOf
from vtryon_services.bridges.rest.documents import PICTURE, SAFETENSORS, SAMPLED, TENSORS, body_of
from vtryon_services.bridges.rest.forms import FORM, read_form
from vtryon_services.validation.ranges import PromptRanges

T = TypeVar("T")
router = APIRouter(prefix="/v1/stages", tags=["stages"])
_FILE: dict[str, Any] = {"format": "binary"}
_FILES: dict[str, Any] = {"items": _FILE}


class EncodePictures(Profiled):
    """The latent encoder's form."""

    pictures: list[str] = Field(default=[], json_schema_extra=_FILES)


class EncodeText(PromptRanges, Profiled):
    """The text encoder's form."""

    pictures: list[str] = Field(default=[], json_schema_extra=_FILES)


class SampleForm(Sampled):
    """The sampler's form."""

    embeddings: str = Field(default="", json_schema_extra=_FILE)
    latents: str = Field(default="", json_schema_extra=_FILE)


class Decode(Encoded, Timed):
    """The decoder's form."""

    latents: str = Field(default="", json_schema_extra=_FILE)


@router.post(
    "/latent-encoder",
    responses=TENSORS,
    openapi_extra=body_of({FORM: EncodePictures}),
    response_class=Response,
)
async def encode_pictures(request: Request, clients: ClientsOf) -> Response:
    """Encode pictures: `latents_1`, `latents_2` and so on."""
    form = await read_form(request, "pictures")
    pictures = form.pictures("pictures", least=1)
    fields = form.read(EncodePictures)
    run = clients.to(Stage.LATENT_ENCODER, request).latent_encoder.encode(
        pictures, numerics=fields.own_numerics(), timeout_seconds=fields.timeout_seconds
    )
    latents, headers = await _finished(request, run)
    return await _tensors(name_latents(latents), headers=headers)


@router.post(
    "/text-encoder",
    responses=TENSORS,
    openapi_extra=body_of({FORM: EncodeText}),
    response_class=Response,
)
async def encode_text(request: Request, clients: ClientsOf) -> Response:
    """Encode a prompt and its pictures: `embeddings`, `negative_embeddings`."""
    form = await read_form(request, "pictures")
    pictures = form.pictures("pictures")
    fields = form.read(EncodeText)
    run = clients.to(Stage.TEXT_ENCODER, request).text_encoder.encode(
        fields.prompt,
        pictures,
        negative_prompt=fields.negative_prompt,
        numerics=fields.own_numerics(),
        timeout_seconds=fields.timeout_seconds,
    )
    embeddings, headers = await _finished(request, run)
    return await _tensors(name_embeddings(embeddings), headers=headers)


@router.post(
    "/sampling",
    responses=SAMPLED,
    openapi_extra=body_of({FORM: SampleForm}),
    response_class=Response,
)
async def sample(request: Request, clients: ClientsOf) -> Response:
    """Denoise, from a file of each encoder: `latents`, with the seed in the file's header."""
    form = await read_form(request, "embeddings", "latents")
    texts, pictures = form.file("embeddings"), form.file("latents")
    fields = form.read(SampleForm)
    given = await asyncio.to_thread(lambda: conditioning(load(texts), load(pictures)))
    _, rows, columns = given.references[0].spec.shape
    start = SampleStart(
        numerics=fields.own_numerics(),
        width=fields.width or 8 * columns,
        height=fields.height or 8 * rows,
        **sampling_fields(fields),
        priority=fields.priority,
        loras=fields.own_loras(),
    )
    sampling = clients.to(Stage.SAMPLING, request).sampling
    run = sampling.sample(start, given, timeout_seconds=fields.timeout_seconds)
    facts: dict[str, str] = {}
    headers: dict[str, str] = {}
    async with left_with(request, run):
        async for event in run:
            if isinstance(event, Accepted):
                facts = {"seed": str(event.seed), "sigmas": ", ".join(map(str, event.sigmas))}
                headers = {"x-vtryon-seed": facts["seed"], **_said(event)}
        return await _tensors({"latents": await run}, facts, headers)


@router.post(
    "/decoding",
    responses=PICTURE,
    openapi_extra=body_of({FORM: Decode}),
    response_class=Response,
)
async def decode(request: Request, clients: ClientsOf) -> Response:
    """Decode the latents of one picture, to the `format` or to one that `Accept` names."""
    accepted_format = wanted_format(request)
    form = await read_form(request, "latents")
    file = form.file("latents")
    fields = form.read(Decode)
    latents = await asyncio.to_thread(lambda: only_latents(load(file)))
    run = clients.to(Stage.DECODING, request).decoding.decode(
        latents,
        **fields.encoding(accepted_format),
        timeout_seconds=fields.timeout_seconds,
    )
    picture, headers = await _finished(request, run)
    return picture_answer(picture, **headers)


async def _finished(request: Request, run: Run[T]) -> tuple[T, dict[str, str]]:
    """Wait for a run's result, and for its `accepted` event."""
    headers: dict[str, str] = {}
    async with left_with(request, run):
        async for event in run:
            if isinstance(event, Accepted):
                headers = _said(event)
        return await run, headers


def _said(event: Accepted) -> dict[str, str]:
    digests = {str(event.stage): event.model_digest} if event.model_digest else {}
    return {**digests_header(digests), **unused_header(event.unused_options)}


async def _tensors(
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    data = await asyncio.to_thread(dump, tensors, facts or {})
    return Response(data, media_type=SAFETENSORS, headers=dict(headers or {}))
