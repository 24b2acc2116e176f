"""`/v1/jobs`: try-ons that outlive their connection, the same ones as by every other interface."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from vtryon.errors import Reason, RequestError, StageError, VtryonError
from vtryon.files.jsonable import plain
from vtryon.jobs import Job, Jobs, JobState, JobUpdate
from vtryon.wire.status import from_reason
from vtryon_services.bridges.rest.accept import EVENT_STREAM, wanted_format
from vtryon_services.bridges.rest.answers import (
    event_frame,
    event_stream,
    frame,
    in_format,
    picture_answer,
)
from vtryon_services.bridges.rest.bodies import JSON, JobForm, JobJson, read_job
from vtryon_services.bridges.rest.clients import ClientsOf, SettingsOf
from vtryon_services.bridges.rest.documents import (
    PICTURE,
    PROBLEMS,
    Responses,
    body_of,
    headers_of,
)
from vtryon_services.bridges.rest.forms import FORM
from vtryon_services.bridges.rest.problems import problem_of
from vtryon_services.validation.ranges import GOOD_REQUEST_ID, field_error

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
_SEQUENCE_DIGITS = 18
_JOB: dict[str, Any] = {"content": {JSON: {"schema": {"type": "object"}}}}
ONE: Responses = {200: {"description": "The current state of the job.", **_JOB}, **PROBLEMS}
MADE: Responses = {
    202: {
        "description": "The job; `Location` is where it is.",
        "headers": headers_of("location", "preference-applied"),
        **_JOB,
    },
    **PROBLEMS,
}
_EVENTS: Responses = {
    200: {
        "description": "An update per event, its sequence number as `id`.",
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
    },
    204: {"description": "The job has ended, and has no updates after `Last-Event-ID`."},
    **PROBLEMS,
}
IdempotencyKey = Annotated[
    str | None,
    Header(description="Sent twice with one key, it is one job."),
]


@router.post(
    "",
    responses=MADE,
    status_code=202,
    openapi_extra=body_of({FORM: JobForm, JSON: JobJson}),
    response_class=Response,
)
async def create(
    request: Request, clients: ClientsOf, idempotency_key: IdempotencyKey = None
) -> Response:
    """Submit a job; `timeout_seconds` is its deadline, queueing included."""
    return made(await make(request, clients.jobs(request), idempotency_key))


async def make(
    request: Request,
    jobs: Jobs,
    key: str | None,
    *,
    previews: bool = True,
) -> Job:
    """Make a job of a request's body, or find the one of its key.

    How it is to be answered is no part of it: a key is one try-on, whatever `Accept` says.
    """
    if key is not None and not GOOD_REQUEST_ID.fullmatch(key):
        words = "takes 1 to 128 printable characters without spaces"
        raise field_error("header.idempotency-key", words)
    fields, pictures = await read_job(request)
    return await jobs.create(
        pictures[0],
        pictures[1:],
        request_id=key or "",
        labels=fields.own_labels(),
        **fields.options(None, previews=previews),
    )


def made(job: Job) -> Response:
    """Answer with a job that was submitted."""
    headers = {"location": f"/v1/jobs/{job.id}", "preference-applied": "respond-async"}
    return JSONResponse(plain(job), 202, headers)


@router.get("", responses=ONE, response_class=Response)
async def list_jobs(
    request: Request,
    clients: ClientsOf,
    state: Annotated[list[JobState] | None, Query()] = None,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    page_token: Annotated[str, Query(max_length=256)] = "",
) -> Response:
    """List jobs, the newest first."""
    jobs = clients.jobs(request)
    page = await jobs.page(states=state or (), size=page_size, token=page_token)
    return JSONResponse(plain(page))


@router.get("/{job_id}", responses=ONE, response_class=Response)
async def get(request: Request, clients: ClientsOf, job_id: str) -> Response:
    """Give a job as it is now."""
    return JSONResponse(plain(await clients.jobs(request).get(job_id)))


@router.post("/{job_id}/cancel", responses=ONE, response_class=Response)
async def cancel(request: Request, clients: ClientsOf, job_id: str) -> Response:
    """Cancel a job; one that has ended stays as it is."""
    return JSONResponse(plain(await clients.jobs(request).cancel(job_id)))


@router.delete("/{job_id}", responses=ONE, response_class=Response)
async def erase(request: Request, clients: ClientsOf, job_id: str) -> Response:
    """Cancel a job, and erase its pictures and prompts."""
    return JSONResponse(plain(await clients.jobs(request).erase(job_id)))


@router.get("/{job_id}/picture", responses=PICTURE, response_class=Response)
async def picture(request: Request, clients: ClientsOf, job_id: str) -> Response:
    """Fetch the picture of a job that succeeded, in a format that `Accept` names."""
    wanted = wanted_format(request)
    found = await clients.jobs(request).picture(job_id)
    return picture_answer(await in_format(found, wanted))


@router.get("/{job_id}/events", responses=_EVENTS, response_class=Response)
async def events(
    request: Request,
    clients: ClientsOf,
    settings: SettingsOf,
    job_id: str,
    last_event_id: Annotated[str, Header()] = "",
) -> Response:
    """Stream the updates of a job until it has ended; `Last-Event-ID` resumes after that update.

    After the last update of an ended job the response is 204, so that an EventSource stops.
    """
    jobs = clients.jobs(request)
    job = await jobs.get(job_id)
    last = _sequence_of(last_event_id)
    if job.ended and last >= job.sequence:
        return Response(status_code=204)
    if last > job.sequence:
        words = f"is {last}, and the last update of this job is {job.sequence}"
        raise field_error("header.last-event-id", words)
    return stream_updates(request, jobs, job_id, last + 1, settings.keepalive_seconds)


def _sequence_of(last_event_id: str) -> int:
    """Parse a Last-Event-ID; an empty one counts as unset, as an EventSource first sends it."""
    text = last_event_id.strip()
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= _SEQUENCE_DIGITS):
        raise field_error("header.last-event-id", "is no number of an update")
    return int(text)


def stream_updates(
    request: Request, jobs: Jobs, job_id: str, first: int, keepalive_seconds: float
) -> StreamingResponse:
    """Answer with a job's updates as they come."""

    async def frames() -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(jobs.watch(job_id, from_sequence=first)) as updates:
                async for update in updates:
                    if shown := _shown(update):
                        yield shown
        except VtryonError as error:
            yield frame("error", problem_of(error, request))

    return event_stream(request, frames(), keepalive_seconds)


def _shown(update: JobUpdate) -> bytes | None:
    if update.job is not None:
        return frame("job", plain(update.job), update.sequence)
    return None if update.event is None else event_frame(update.event, update.sequence)


async def finished(jobs: Jobs, job: Job) -> Job:
    """Wait for a job that was submitted in place of a try-on.

    Raises:
        VtryonError: as the try-on would have failed.
    """
    job = await jobs.wait(job.id)
    if job.state is JobState.SUCCEEDED:
        return job
    if job.error is None:
        raise RequestError(f"job {job.id} was cancelled", reason=Reason.CANCELLED)
    if job.error.reason is None:
        raise StageError(job.error.message)
    raise from_reason(job.error.reason, job.error.message, job.error.metadata)
