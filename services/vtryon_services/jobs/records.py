"""Jobs as rows of the job store, as callers, and as runners have them."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from vtryon.errors import Reason
from vtryon.events import Event
from vtryon.jobs import Job, JobError, JobState
from vtryon.types import PayloadKind, ResumePoint, TryOnOptions
from vtryon.v1 import job_pb2, pipeline_pb2
from vtryon_services.jobs.origin import Origin
from vtryon_services.validation.ranges import field_error

_JOB_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it is asked for; `digest` stands for everything in it.

    Attributes:
        options: without prompts.
        sealed: the prompts, encrypted.
    """

    id: str
    tenant: str
    request_id: str
    digest: str
    options: TryOnOptions
    sealed: bytes
    pictures: Sequence[tuple[PayloadKind, str]]
    timeout_seconds: float
    origin: Origin = field(default_factory=Origin)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resume:
    """A stored resume point: artifact, shape and model digests."""

    point: ResumePoint
    artifact: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leased:
    """A job in a runner's hands; its prompts are encrypted in `sealed`."""

    id: str
    tenant: str
    request_id: str
    fence: int
    attempts: int
    options: TryOnOptions
    sealed: bytes
    pictures: Sequence[tuple[PayloadKind, str]]
    deadline: float
    resume: Resume | None
    origin: Origin


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events of a job that are not stored yet, and its current sampling step."""

    happened: Sequence[tuple[datetime, Event]]
    step: int
    steps: int

    @property
    def values(self) -> dict[str, Any]:
        """Columns to update."""
        return {"step": self.step, "steps": self.steps} if self.steps else {}


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
    """Build the error of a job past its deadline."""
    return failed(job_id, Reason.DEADLINE_PASSED, "out of time before it was done", {})


@dataclass(frozen=True, slots=True)
class Kept:
    """A job as the store has it: its prompts are encrypted in `sealed`."""

    message: job_pb2.Job
    sealed: bytes

    @property
    def job(self) -> Job:
        """The job, without prompts."""
        return Job.from_proto(self.message)


def kept_of(row: Row[Any]) -> Kept:
    """Give a row as callers see it, but for the prompts."""
    message = job_pb2.Job.FromString(row.outcome)
    message.id = row.id
    message.request_id = row.request_id
    message.state = job_pb2.JobState.Value(f"JOB_STATE_{JobState(row.state).name}")
    message.options.ParseFromString(row.options)
    for name in ("created_at", "started_at", "ended_at", "expires_at"):
        if (seconds := getattr(row, name)) is not None:
            getattr(message, name).FromDatetime(datetime.fromtimestamp(seconds, UTC))
    for name in ("attempts", "step", "steps", "sequence", "erased", "erasing"):
        setattr(message, name, getattr(row, name))
    message.labels.update(row.labels)
    return Kept(message, b"" if row.erasing or row.erased else row.sealed)


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
        sealed=before.sealed,
        pictures=[(PayloadKind(kind), artifact) for kind, artifact in before.pictures],
        deadline=before.deadline,
        resume=resume,
        origin=Origin.of(before),
    )


def token_of(row: Row[Any]) -> str:
    """Build the token of the page after this row."""
    return base64.urlsafe_b64encode(f"{row.created_at!r}/{row.id}".encode()).decode()


def read_token(token: str) -> tuple[float, str]:
    """Parse a token of `token_of`.

    Raises:
        RequestError: it is invalid.
    """
    try:
        created_at, _, job_id = base64.urlsafe_b64decode(token.encode()).decode().partition("/")
        moment = float(created_at)
    except (ValueError, binascii.Error):
        moment, job_id = math.nan, ""
    if not math.isfinite(moment) or not is_job_id(job_id):
        raise field_error("page_token", "is not a token that an earlier page gave")
    return moment, job_id


def is_job_id(text: str) -> bool:
    """Tell whether a text could be the id of a job; other texts never reach the database."""
    return _JOB_ID.fullmatch(text) is not None
