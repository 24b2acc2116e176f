"""Failures as problem+json (RFC 9457), with the reasons of every other door."""

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
    REASONS,
    OverloadedError,
    Reason,
    RequestError,
    StageError,
    VtryonError,
)
from vtryon_services.runtime.ranges import violation_of

MEDIA_TYPE = "application/problem+json"
OPENAI_PREFIX = "/v1/images/"  # whose clients look for `error`
_CLIENT_CLOSED_REQUEST = 499  # nginx's

_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.INTERNAL_SERVER_ERROR,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    grpc.StatusCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    grpc.StatusCode.CANCELLED: _CLIENT_CLOSED_REQUEST,
}
_PLAIN: dict[int, Reason] = {HTTPStatus.NOT_FOUND: Reason.NOT_FOUND}
_BY_REASON = {
    Reason.PAYLOAD_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Reason.PICTURE_FORMAT_UNSUPPORTED: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
}


class FieldViolation(BaseModel):
    """One field that does not hold, and why."""

    field: str
    description: str


class Problem(BaseModel):
    """What went wrong; `reason` is for programs, `detail` for people."""

    type: str = Field(examples=["urn:vtryon:QUEUE_FULL"])
    title: str
    status: int
    detail: str
    reason: str = Field(description="As in `google.rpc.ErrorInfo` of the gRPC door.")
    request_id: str
    metadata: dict[str, str] = Field(default_factory=dict)
    violations: list[FieldViolation] = Field(default_factory=list)
    retry_after_seconds: float | None = None


def status_of(error: VtryonError) -> int:
    """Give the HTTP status of an error."""
    reason = error.reason or Reason.STAGE_FAILED
    return int(_BY_REASON.get(reason) or _STATUSES[REASONS[reason].status])


def problem_of(error: VtryonError, request: Request) -> dict[str, Any]:
    """Describe an error."""
    status = status_of(error)
    reason = error.reason or Reason.STAGE_FAILED
    title = reason.value.replace("_", " ").capitalize()
    problem = Problem(
        type=f"urn:vtryon:{reason}",
        title=title,
        status=status,
        detail=error.message,
        reason=reason.value,
        request_id=request_id_of(request),
        metadata=error.metadata,
        violations=[
            FieldViolation(field=one.field, description=one.description)
            for one in getattr(error, "violations", ())
        ],
        retry_after_seconds=getattr(error, "retry_after_seconds", None),
    )
    described = problem.model_dump(exclude_defaults=True)
    if request.url.path.startswith(OPENAI_PREFIX):
        own = {"message": error.message, "type": title, "param": None, "code": reason.value}
        described["error"] = {**described, **own}
    return described


def respond(error: VtryonError, request: Request) -> JSONResponse:
    """Answer with a problem; `Retry-After` says when to come back."""
    headers = {}
    if isinstance(error, OverloadedError):
        headers["retry-after"] = str(math.ceil(error.retry_after_seconds))
    body = problem_of(error, request)
    return JSONResponse(body, status_of(error), headers, media_type=MEDIA_TYPE)


def request_id_of(request: Request) -> str:
    """What logs and traces call the request."""
    return str(request.scope.get("vtryon.request_id", ""))


def from_validation(error: ValidationError | RequestValidationError) -> RequestError:
    """Make our error of pydantic's; a text's content is never repeated."""
    violations = tuple(violation_of(dict(problem)) for problem in error.errors())
    listed = "; ".join(f"{item.field}: {item.description}" for item in violations)
    return RequestError(listed, violations=violations)


def add_handlers(app: FastAPI) -> None:
    """Have every failure of an app told as a problem."""

    @app.exception_handler(VtryonError)
    async def ours(request: Request, error: VtryonError) -> Response:
        return respond(error, request)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return respond(from_validation(error), request)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        """Starlette's own: no such route, no such method, a body that is none."""
        problem = Problem(
            type="about:blank",
            title=HTTPStatus(error.status_code).phrase,
            status=error.status_code,
            detail=str(error.detail),
            reason=_PLAIN.get(error.status_code, Reason.FIELD_INVALID).value,
            request_id=request_id_of(request),
        )
        body = problem.model_dump(exclude_defaults=True)
        return JSONResponse(body, error.status_code, error.headers, media_type=MEDIA_TYPE)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        name = request_id_of(request)
        failure = StageError(f"the bridge failed; its log has the cause under request id {name}")
        return respond(failure, request)
