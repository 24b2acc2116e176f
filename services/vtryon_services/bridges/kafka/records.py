"""Between our values and records of the schemas under protos/kafka."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vtryon.errors import Reason, RequestError, VtryonError
from vtryon.events import Hop
from vtryon.files.jsonable import plain
from vtryon.jobs import JobError, JobState, JobUpdate
from vtryon.types import EncodedImage, Payload, PayloadKind, TensorSpec, TryOnOptions
from vtryon_services.validation.ranges import check_labels, field_error, violation_of

T = TypeVar("T")
_MOST_VIOLATIONS, _LONGEST_MESSAGE, _MOST_FACTS = 20, 2000, 32
_LONGEST_FACT = 256
_LONGEST_ANSWERED_ID = 1024  # characters; a longer one is never in an answer, also not in part
_LARGEST_LONG, _DIGITS = 2**63 - 1, 20
_OPTIONS = TypeAdapter(TryOnOptions)
_TENSOR, _IMAGE = TypeAdapter(TensorSpec), TypeAdapter(EncodedImage)
_KIND = TypeAdapter(PayloadKind)


def read_options(record: Mapping[str, Any]) -> TryOnOptions:
    """Read a record's options; their consumer checks the ranges.

    Raises:
        RequestError: an enum value is unknown, or a seed is not a number.
    """
    given = dict(record)
    if isinstance(seed := given.get("seed"), str):
        if not (seed.isascii() and seed.isdecimal() and len(seed) <= _DIGITS):
            raise field_error("seed", "takes a number, or one's decimal digits where it is large")
        given["seed"] = int(seed)
    return _read(_OPTIONS, given)


def options_record(options: TryOnOptions) -> dict[str, Any]:
    """Make the record of options."""
    return {**plain(options), "seed": seed_record(options.seed)}


def seed_record(seed: int | None) -> int | str | None:
    """Give a seed as Avro holds it: a long, or digits where it is larger than that."""
    return str(seed) if seed is not None and seed > _LARGEST_LONG else seed


def read_payload(record: Mapping[str, Any]) -> Payload:
    """Read the declaration of a payload, without its length.

    Raises:
        RequestError: an enum value is unknown.
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
        problems = error.errors()[:_MOST_VIOLATIONS]
        violations = tuple(violation_of(dict(one)) for one in problems)
        listed = "; ".join(f"{one.field}: {one.description}" for one in violations)
        raise RequestError(listed, violations=violations) from None


def payload_record(payload: Payload, content: Mapping[str, Any]) -> dict[str, Any]:
    """Make the record of a payload."""
    return {**plain(payload), "content": content}


def answerable(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rejected request with an id and labels that fit into a response.

    Both are unchanged, or empty if they exceed their limits.
    """
    labels, request_id = record["labels"], record["request_id"]
    try:
        check_labels(labels)
    except RequestError:
        labels = {}
    if len(request_id) > _LONGEST_ANSWERED_ID:
        request_id = ""
    return {**record, "request_id": request_id, "labels": labels}


def error_record(error: VtryonError | JobError) -> dict[str, Any]:
    """Make the record of a failure."""
    reason = error.reason or Reason.STAGE_FAILED
    facts = list(error.metadata.items())[:_MOST_FACTS]
    return {
        "reason": reason.value,
        "message": error.message[:_LONGEST_MESSAGE],
        "metadata": {key[:_LONGEST_FACT]: value[:_LONGEST_FACT] for key, value in facts},
    }


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


def event_of(update: JobUpdate) -> dict[str, Any]:
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
        labels=job.labels,
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
    fits: Sequence[Mapping[str, Any]] = (),
    model_digests: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Make the record of how a job ended."""
    return {
        "job_id": job_id,
        "request_id": request_id,
        "state": state.name,
        "picture": picture,
        "error": None if error is None else error_record(error),
        "seed": seed_record(seed),
        "attempts": attempts,
        "wall_seconds": wall_seconds,
        "hops": list(hops),
        "labels": dict(labels or {}),
        "unused_options": list(unused_options),
        "fits": list(fits),
        "model_digests": dict(model_digests or {}),
    }


def picture_record(image: EncodedImage | None, content: Mapping[str, Any]) -> dict[str, Any]:
    """Make the record of a picture."""
    return {"image": plain(image or EncodedImage()), "content": content}
