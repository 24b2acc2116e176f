"""Between our values and records of the schemas under protos/kafka."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vtryon.errors import Reason, RequestError, VtryonError
from vtryon.events import Hop
from vtryon.jobs import JobError, JobState, JobUpdate
from vtryon.plain import plain
from vtryon.types import EncodedImage, Payload, PayloadKind, TensorSpec, TryOnOptions
from vtryon_services.runtime.ranges import violation_of

T = TypeVar("T")
_OPTIONS = TypeAdapter(TryOnOptions)
_TENSOR, _IMAGE = TypeAdapter(TensorSpec), TypeAdapter(EncodedImage)
_KIND = TypeAdapter(PayloadKind)


def read_options(record: Mapping[str, Any]) -> TryOnOptions:
    """Read a record's options; their ranges are checked by who takes them.

    Raises:
        RequestError: a word that nobody knows.
    """
    return _read(_OPTIONS, record)


def read_payload(record: Mapping[str, Any]) -> Payload:
    """Read the declaration of a payload, but for its length.

    Raises:
        RequestError: a word that nobody knows.
    """
    tensor, image = record["tensor"], record["image"]
    return Payload(
        _read(_KIND, record["kind"]),
        0,
        tensor=None if tensor is None else _read(_TENSOR, tensor),
        image=None if image is None else _read(_IMAGE, image),
    )


def _read(adapter: TypeAdapter[T], record: object) -> T:
    try:
        return adapter.validate_python(record)
    except ValidationError as error:
        violations = tuple(violation_of(dict(one)) for one in error.errors())
        listed = "; ".join(f"{one.field}: {one.description}" for one in violations)
        raise RequestError(listed, violations=violations) from None


def payload_record(payload: Payload, content: Mapping[str, Any]) -> dict[str, Any]:
    """Make the record of a payload."""
    return {**plain(payload), "content": content}


def error_record(error: VtryonError | JobError) -> dict[str, Any]:
    """Make the record of a failure."""
    reason = error.reason or Reason.STAGE_FAILED
    return {"reason": reason.value, "message": error.message, "metadata": dict(error.metadata)}


def hop_records(hops: Sequence[Hop]) -> list[dict[str, Any]]:
    """Make the records of a ledger's hops."""
    return [{**plain(one), "stage": str(one.stage or "")} for one in hops]


def event_record(
    request_id: str,
    job_id: str,
    sequence: int,
    at: datetime,
    state: JobState,
    *,
    attempts: int = 0,
    error: VtryonError | JobError | None = None,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Make the record of a change of a job's state."""
    return {
        "job_id": job_id,
        "request_id": request_id,
        "sequence": sequence,
        "at": at,
        "state": state.name,
        "attempts": attempts,
        "error": None if error is None else error_record(error),
        "labels": dict(labels or {}),
    }


def event_of(update: JobUpdate, labels: Mapping[str, str]) -> dict[str, Any]:
    """Make the record of a ledger's update."""
    job = update.job
    assert job is not None
    assert job.state is not None
    return event_record(
        job.request_id,
        job.id,
        update.sequence,
        update.at,
        job.state,
        attempts=job.attempts,
        error=job.error,
        labels=labels,
    )


def response_record(
    request_id: str,
    job_id: str,
    state: JobState,
    *,
    picture: Mapping[str, Any] | None = None,
    error: VtryonError | JobError | None = None,
    seed: int | None = None,
    attempts: int = 0,
    wall_seconds: float | None = None,
    hops: Sequence[Mapping[str, Any]] = (),
    labels: Mapping[str, str] | None = None,
    unused_options: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Make the record of how a job ended."""
    return {
        "job_id": job_id,
        "request_id": request_id,
        "state": state.name,
        "picture": picture,
        "error": None if error is None else error_record(error),
        "seed": seed,
        "attempts": attempts,
        "wall_seconds": wall_seconds,
        "hops": list(hops),
        "labels": dict(labels or {}),
        "unused_options": list(unused_options),
    }


def picture_record(image: EncodedImage | None, content: Mapping[str, Any]) -> dict[str, Any]:
    """Make the record of a picture."""
    return {"image": plain(image or EncodedImage()), "content": content}
