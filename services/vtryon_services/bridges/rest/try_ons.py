"""`POST /v1/try-ons`: two pictures and a sentence in; a picture, JSON or events out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response

from vtryon.files.jsonable import plain
from vtryon.jobs import Job, Jobs
from vtryon.types import ImageFormat, Stage
from vtryon_services.bridges.rest.accept import Answer, wanted_answer
from vtryon_services.bridges.rest.answers import (
    digests_header,
    in_format,
    picture_answer,
    picture_json,
    result_answer,
    result_frame,
    stream,
    unused_header,
    wait_for,
)
from vtryon_services.bridges.rest.bodies import (
    JSON,
    TryOnForm,
    TryOnJson,
    read_try_on,
)
from vtryon_services.bridges.rest.clients import ClientsOf, SettingsOf
from vtryon_services.bridges.rest.documents import RESULTS, body_of
from vtryon_services.bridges.rest.forms import FORM
from vtryon_services.bridges.rest.jobs import (
    MADE,
    IdempotencyKey,
    finished,
    made,
    make,
    stream_updates,
)
from vtryon_services.bridges.rest.problems import request_id_of

router = APIRouter(tags=["try-ons"])


@router.post(
    "/v1/try-ons",
    responses={**RESULTS, 202: MADE[202]},
    openapi_extra=body_of({FORM: TryOnForm, JSON: TryOnJson}),
    response_class=Response,
)
async def try_on(
    request: Request,
    clients: ClientsOf,
    settings: SettingsOf,
    idempotency_key: IdempotencyKey = None,
    prefer: Annotated[str, Header()] = "",
) -> Response:
    """Put the garment on the person.

    `Accept` chooses the answer: a picture (`image/png`, `image/jpeg`, `image/webp`), everything as
    `application/json`, or `text/event-stream` for an event per step with previews. Dropping the
    connection cancels the request before its next step.

    With `Prefer: respond-async` it becomes a job, and the answer is where that is. With an
    `Idempotency-Key` it is a job that is waited for: sent again, it gives the same picture.
    """
    answer, accepted_format = wanted_answer(request)
    wants_job = _prefers_async(prefer)
    if wants_job or idempotency_key:
        jobs = clients.jobs(request)
        previews = answer is Answer.EVENTS
        job = await make(request, jobs, idempotency_key, previews=previews)
        if wants_job:
            return made(job)
        if answer is Answer.EVENTS:
            return stream_updates(request, jobs, job.id, 1, settings.keepalive_seconds)
        return await _job_answer(await finished(jobs, job), jobs, answer, accepted_format)
    fields, pictures = await read_try_on(request)
    events = answer is Answer.EVENTS
    run = clients.to(Stage.PIPELINE, request).try_on(
        pictures[0],
        pictures[1:],
        **fields.options(accepted_format, previews=events, shown=events),
        request_id=request_id_of(request),
    )
    if events:
        seconds = settings.keepalive_seconds
        return await stream(request, run, result_frame, keepalive_seconds=seconds)
    return result_answer(await wait_for(request, run), answer)


def _prefers_async(prefer: str) -> bool:
    """Tell whether `respond-async` is among the preferences (RFC 7240)."""
    names = (one.partition(";")[0].partition("=")[0].strip().lower() for one in prefer.split(","))
    return "respond-async" in names


async def _job_answer(
    job: Job, jobs: Jobs, answer: Answer, accepted_format: ImageFormat | None
) -> Response:
    picture = await jobs.picture(job.id)
    seed = job.options.seed if job.options else None
    if answer is Answer.JSON:
        return JSONResponse({**plain(job), "seed": seed, "picture": picture_json(picture)})
    picture = await in_format(picture, accepted_format)
    headers = {"x-vtryon-seed": str(seed), "x-vtryon-job": job.id}
    headers |= digests_header(job.model_digests)
    return picture_answer(picture, **headers, **unused_header(job.unused_options))
