"""`POST /v1/try-ons`: two pictures and a sentence in; a picture, JSON or events out."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from vtryon.types import Stage
from vtryon_services.bridges.rest.answers import (
    Answer,
    result_answer,
    result_frame,
    stream,
    wait_for,
    wanted_answer,
)
from vtryon_services.bridges.rest.bodies import (
    FORM,
    JSON,
    TryOnFields,
    TryOnForm,
    TryOnJson,
    media_type_of,
    read_form,
    read_json,
)
from vtryon_services.bridges.rest.documents import RESULTS, body_of
from vtryon_services.bridges.rest.doors import DoorsOf, SettingsOf
from vtryon_services.bridges.rest.problems import request_id_of

router = APIRouter(tags=["try-ons"])


@router.post(
    "/v1/try-ons",
    responses=RESULTS,
    openapi_extra=body_of({FORM: TryOnForm, JSON: TryOnJson}),
    response_class=Response,
)
async def try_on(request: Request, doors: DoorsOf, settings: SettingsOf) -> Response:
    """Put the garment on the person.

    `Accept` chooses the answer: a picture (`image/png`, `image/jpeg`, `image/webp`), everything as
    `application/json`, or `text/event-stream` for an event per step with previews. Dropping the
    connection cancels the request before its next step.
    """
    answer, accepted_format = wanted_answer(request)
    fields, pictures = await _read(request)
    options = fields.options()
    options["format"] = options["format"] or accepted_format
    run = doors.to(Stage.PIPELINE, request).try_on(
        pictures[0],
        pictures[1:],
        **options,
        previews=answer is Answer.EVENTS,
        request_id=request_id_of(request),
    )
    if answer is Answer.EVENTS:
        seconds = settings.keepalive_seconds
        return await stream(request, run, result_frame, keepalive_seconds=seconds)
    return result_answer(await wait_for(request, run), answer)


async def _read(request: Request) -> tuple[TryOnFields, list[bytes]]:
    if media_type_of(request) == JSON:
        content = await read_json(request, TryOnJson)
        fields = TryOnFields.model_validate(
            content.model_dump(exclude={"person", "garments"}, exclude_unset=True)
        )
        return fields, [content.person, *content.garments]
    form = await read_form(request)
    pictures = [*form.pictures("person", least=1)[:1], *form.pictures("garments", "garment")]
    return form.read(TryOnFields), pictures
