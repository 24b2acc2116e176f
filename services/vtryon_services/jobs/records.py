"""Jobs as the ledger's rows, as callers, and as runners have them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from vtryon.errors import Reason, RequestError
from vtryon.jobs import Job, JobError, JobState
from vtryon.types import PayloadKind, ResumePoint, TryOnOptions
from vtryon.v1 import job_pb2, pipeline_pb2


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it is asked for; `digest` stands for everything in it."""

    tenant: str
    request_id: str
    digest: str
    options: TryOnOptions
    pictures: Sequence[tuple[PayloadKind, str]]
    timeout_seconds: float
    traceparent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resume:
    """Latents from which an attempt goes on: where they are kept, their shape, whose they are."""

    point: ResumePoint
    artifact: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leased:
    """A job in a runner's hands."""

    id: str
    tenant: str
    request_id: str
    fence: int
    attempts: int
    options: TryOnOptions
    pictures: Sequence[tuple[PayloadKind, str]]
    deadline: float
    resume: Resume | None
    traceparent: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    state: JobState
    detail: Job
    picture_artifact: str | None = None


def failed(job_id: str, reason: Reason | None, message: str, metadata: dict[str, str]) -> Job:
    """Describe a failure."""
    error = JobError(reason or Reason.STAGE_FAILED, message, metadata)
    return Job(job_id, state=JobState.FAILED, error=error)


def out_of_time(job_id: str) -> Job:
    """Describe the end of a job whose deadline has passed."""
    return failed(job_id, Reason.DEADLINE_PASSED, "out of time before it was done", {})


def job_of(row: Row[Any]) -> Job:
    """Give a row as callers see it."""
    told = Job.from_proto(job_pb2.Job.FromString(row.outcome))
    return Job(
        id=row.id,
        request_id=row.request_id,
        state=JobState(row.state),
        options=TryOnOptions.from_proto(pipeline_pb2.TryOnOptions.FromString(row.options)),
        created_at=_moment(row.created_at),
        started_at=_moment(row.started_at),
        ended_at=_moment(row.ended_at),
        expires_at=_moment(row.expires_at),
        attempts=row.attempts,
        step=row.step,
        steps=row.steps,
        sequence=row.sequence,
        error=told.error,
        picture=told.picture,
        ledger=told.ledger,
        fits=told.fits,
        erased=row.erased,
        labels=row.labels,
        unused_options=told.unused_options,
    )


def leased_of(before: Row[Any]) -> Leased:
    """Give a row, as it was before, as the runner has it that has just taken it."""
    resume = None
    if before.resume_artifact is not None:
        kept = before.resume_shape
        point = ResumePoint(before.resume_step, kept["model_digest"], kept["encoders_digest"])
        resume = Resume(point, before.resume_artifact, tuple(kept["shape"]))
    return Leased(
        id=before.id,
        tenant=before.tenant,
        request_id=before.request_id,
        fence=before.fence + 1,
        attempts=before.attempts + 1,
        options=TryOnOptions.from_proto(pipeline_pb2.TryOnOptions.FromString(before.options)),
        pictures=[(PayloadKind(kind), artifact) for kind, artifact in before.pictures],
        deadline=before.deadline,
        resume=resume,
        traceparent=before.traceparent,
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def token_of(row: Row[Any]) -> str:
    """Say where a page behind this row begins."""
    return base64.urlsafe_b64encode(f"{row.created_at!r}/{row.id}".encode()).decode()


def read_token(token: str) -> tuple[float, str]:
    """Read what `token_of` gave.

    Raises:
        RequestError: it is something else.
    """
    try:
        created_at, _, job_id = base64.urlsafe_b64decode(token.encode()).decode().partition("/")
        return float(created_at), job_id
    except (ValueError, binascii.Error):
        raise RequestError("page_token: is none that was given out") from None
