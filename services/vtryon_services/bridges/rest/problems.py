"""Failures as problem+json (RFC 9457), with the reasons of every other interface."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import grpc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from vtryon.errors import (
    OverloadedError,
    Reason,
    RequestError,
    StageError,
    UnavailableError,
    Violation,
    VtryonError,
)
from vtryon.wire.status import REASONS
from vtryon_services.validation.ranges import violation_of

MEDIA_TYPE = "application/problem+json"
DOCUMENT = "/openapi.json"
OPENAI_PREFIX = "/v1/images/"  # whose clients look for `error`
_CLIENT_CLOSED_REQUEST = 499  # nginx's

_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    # The request's own time, or the default that it chose by naming none, is over: a gateway's 504
    # would have proxies take a well server for a sick one.
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.UNPROCESSABLE_ENTITY,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.INTERNAL_SERVER_ERROR,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    grpc.StatusCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    grpc.StatusCode.CANCELLED: _CLIENT_CLOSED_REQUEST,
}
_PLAIN: dict[int, Reason] = {HTTPStatus.NOT_FOUND: Reason.NOT_FOUND}
_NOT_OFFERED = (
    "the mesh behind this address does not offer that; jobs take the address of a jobs service in "
    "VTRYON_REST_JOBS_TARGET"
)
_MAX_VIOLATIONS, _MAX_NAME, _MAX_TEXT = 20, 128, 2000
_BY_REASON = {
    Reason.PAYLOAD_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Reason.PICTURE_FORMAT_UNSUPPORTED: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
}


class FieldViolation(BaseModel):
    """One field that does not hold, and why."""

    field: str
    description: str


class Problem(BaseModel):
    """An error: `reason` is machine-readable, `detail` human-readable."""

    type: str = Field(examples=["urn:vtryon:QUEUE_FULL"])
    title: str
    status: int
    detail: str
    reason: str = Field(description="As in `google.rpc.ErrorInfo` of the gRPC interface.")
    request_id: str
    metadata: dict[str, str] = Field(default_factory=dict)
    violations: list[FieldViolation] = Field(default_factory=list)
    retry_after_seconds: float | None = None


def status_of(error: VtryonError) -> int:
    """Give the HTTP status of an error."""
    reason = error.reason or Reason.STAGE_FAILED
    return int(_BY_REASON.get(reason) or _STATUSES[REASONS[reason].status])


def problem_of(error: VtryonError, request: Request, status: int | None = None) -> dict[str, Any]:
    """Describe an error; texts from clients are truncated, which bounds the response's size."""
    if error.metadata.get("status") == grpc.StatusCode.UNIMPLEMENTED.name:
        error = UnavailableError(_NOT_OFFERED)
    reason = error.reason or Reason.STAGE_FAILED
    title = reason.value.replace("_", " ").capitalize()
    problem = Problem(
        type=f"urn:vtryon:{reason}",
        title=title,
        status=status or status_of(error),
        detail=_cut(error.message, _MAX_TEXT),
        reason=reason.value,
        request_id=request_id_of(request),
        metadata={name: _cut(value, _MAX_TEXT) for name, value in error.metadata.items()},
        violations=[
            FieldViolation(field=one.field, description=one.description)
            for one in map(_cut_violation, getattr(error, "violations", ())[:_MAX_VIOLATIONS])
        ],
        retry_after_seconds=getattr(error, "retry_after_seconds", None),
    )
    described = problem.model_dump(exclude_defaults=True)
    if request.url.path.startswith(OPENAI_PREFIX):
        own = {"message": problem.detail, "type": title, "param": None, "code": reason.value}
        described["error"] = {**described, **own}
    return described


def respond(error: VtryonError, request: Request, status: int | None = None) -> JSONResponse:
    """Answer with a problem; `Retry-After` says when to come back."""
    headers = {}
    if isinstance(error, OverloadedError):
        headers["retry-after"] = str(math.ceil(error.retry_after_seconds))
    body = problem_of(error, request, status)
    return JSONResponse(body, body["status"], headers, media_type=MEDIA_TYPE)


def failed_inside(request: Request) -> StageError:
    """Build the error of an unexpected failure."""
    name = request_id_of(request)
    return StageError(f"the bridge failed; its log has the cause under request id {name}")


def _cut(text: str, length: int) -> str:
    """Truncate a text that may repeat client input, and make it valid in JSON."""
    cut = text if len(text) <= length else f"{text[:length]}…"
    return cut.encode("utf-8", "backslashreplace").decode()


def _cut_violation(one: Violation) -> Violation:
    return Violation(_cut(one.field, _MAX_NAME), _cut(one.description, _MAX_TEXT))


def request_id_of(request: Request) -> str:
    """The request's id in logs and traces."""
    return str(request.scope.get("vtryon.request_id", ""))


def from_validation(error: ValidationError | RequestValidationError) -> RequestError:
    """Make our error of pydantic's; a text's content is never repeated."""
    problems = error.errors()
    shown = problems[:_MAX_VIOLATIONS]
    violations = tuple(_cut_violation(violation_of(dict(problem))) for problem in shown)
    listed = "; ".join(f"{item.field}: {item.description}" for item in violations)
    if more := len(problems) - len(shown):
        listed = f"{more + len(shown)} fields are invalid; the first {len(shown)}: {listed}"
    return RequestError(listed, violations=violations)


def add_handlers(app: FastAPI) -> None:
    """Have every failure of an app described as a problem."""

    @app.exception_handler(VtryonError)
    async def ours(request: Request, error: VtryonError) -> Response:
        return respond(error, request)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return respond(from_validation(error), request)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        """Starlette's own: no such route, no such method, a body that is none."""
        detail = str(error.detail)
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"there is no such path; {DOCUMENT} lists those that there are"
            headers["link"] = f'<{DOCUMENT}>; rel="service-desc"'
        problem = Problem(
            type="about:blank",
            title=HTTPStatus(error.status_code).phrase,
            status=error.status_code,
            detail=detail,
            reason=_PLAIN.get(error.status_code, Reason.FIELD_INVALID).value,
            request_id=request_id_of(request),
        )
        body = problem.model_dump(exclude_defaults=True)
        return JSONResponse(body, error.status_code, headers, media_type=MEDIA_TYPE)
