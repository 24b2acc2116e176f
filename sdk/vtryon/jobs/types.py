"""Values of jobs, and the requests of `JobService`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from google.protobuf.message import Message

from vtryon import events
from vtryon.errors import Reason
from vtryon.events import Event, Fit, Ledger, UnusedOption
from vtryon.messages import ProtoType
from vtryon.types import EncodedImage, Payload, TryOnOptions
from vtryon.v1 import job_pb2

JOB_SERVICE = "/vtryon.v1.JobService/"
_JOB_ID = {"id": "job_id"}
_PAGE = {"page_size": "size", "page_token": "token"}


class JobState(StrEnum):
    """State of a job; see job.proto for the transitions."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self not in {JobState.QUEUED, JobState.RUNNING}


@dataclass(frozen=True, slots=True)
class JobError(ProtoType):
    """Why a job failed, as a failed call says it."""

    proto = job_pb2.JobError
    reason: Reason | None
    message: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job(ProtoType):
    """A job as it is now; times are in UTC."""

    proto = job_pb2.Job
    id: str
    request_id: str = ""
    state: JobState | None = None
    options: TryOnOptions | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    attempts: int = 0
    step: int = 0
    steps: int = 0
    sequence: int = 0
    error: JobError | None = None
    picture: EncodedImage | None = None
    ledger: Ledger | None = None
    fits: tuple[Fit, ...] = ()
    erased: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    erasing: bool = False
    unused_options: tuple[UnusedOption, ...] = ()
    model_digests: dict[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state is not None and self.state.ended


@dataclass(frozen=True, slots=True)
class JobUpdate(ProtoType):
    """Something that happened: a new state of the job, or an event of its try-on."""

    proto = job_pb2.JobUpdate
    sequence: int
    at: datetime
    job: Job | None = None
    event: Event | None = None

    @classmethod
    def from_proto(cls, message: Any) -> Self:
        """Read an update."""
        plain = _UpdateFacts.from_proto(message)
        event = events.from_proto(message.event) if message.HasField("event") else None
        return cls(plain.sequence, plain.at, plain.job, event)

    def to_proto(self) -> Message:
        """Make the message."""
        message: Any = _UpdateFacts(self.sequence, self.at, self.job).to_proto()
        if self.event is not None:
            message.event.CopyFrom(events.to_proto(self.event))
        return message  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _UpdateFacts(ProtoType):
    proto = job_pb2.JobUpdate
    sequence: int
    at: datetime
    job: Job | None = None


@dataclass(frozen=True, slots=True)
class CreateJobStart(ProtoType):
    """Start of `JobService.CreateJob`."""

    proto = job_pb2.CreateJobStart
    payloads: tuple[Payload, ...] = ()
    options: TryOnOptions | None = None
    request_id: str = ""
    timeout_seconds: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    correlation_id: bytes = b""


@dataclass(frozen=True, slots=True)
class GetJob(ProtoType):
    """Of `JobService.GetJob`."""

    proto = job_pb2.GetJobRequest
    argument_names = _JOB_ID
    id: str


@dataclass(frozen=True, slots=True)
class CancelJob(ProtoType):
    """Of `JobService.CancelJob`."""

    proto = job_pb2.CancelJobRequest
    argument_names = _JOB_ID
    id: str


@dataclass(frozen=True, slots=True)
class EraseJob(ProtoType):
    """Of `JobService.EraseJob`."""

    proto = job_pb2.EraseJobRequest
    argument_names = _JOB_ID
    id: str


@dataclass(frozen=True, slots=True)
class WatchJob(ProtoType):
    """Of `JobService.WatchJob`."""

    proto = job_pb2.WatchJobRequest
    argument_names = _JOB_ID
    id: str
    from_sequence: int = 0


@dataclass(frozen=True, slots=True)
class FetchPicture(ProtoType):
    """Of `JobService.FetchPicture`."""

    proto = job_pb2.FetchPictureRequest
    argument_names = _JOB_ID
    id: str


@dataclass(frozen=True, slots=True)
class ListJobs(ProtoType):
    """Of `JobService.ListJobs`."""

    proto = job_pb2.ListJobsRequest
    argument_names = _PAGE
    states: tuple[JobState, ...] = ()
    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class JobPage(ProtoType):
    """A page of jobs, and the token of the next page; empty on the last page."""

    proto = job_pb2.ListJobsResponse
    jobs: tuple[Job, ...] = ()
    next_page_token: str = ""
