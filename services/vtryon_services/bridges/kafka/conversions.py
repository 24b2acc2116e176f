"""Conversion between the SDK's values and the records of Kafka's schemas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vtryon.errors import Reason, RequestError, VtryonError
from vtryon.events import Fit, Hop, UnusedOption
from vtryon.files.jsonable import plain
from vtryon.jobs import JobError, JobUpdate
from vtryon.types import EncodedImage, Payload, PayloadKind, TensorSpec, TryOnOptions
from vtryon_services.bridges.kafka.records import (
    Content,
    ErrorRecord,
    FitRecord,
    HopRecord,
    ImageRecord,
    JobEventRecord,
    JobRequestRecord,
    PayloadRecord,
    PictureRecord,
    StageRequestRecord,
    TensorRecord,
    UnusedOptionRecord,
)
from vtryon_services.validation.ranges import check_labels, field_error, violation_of

T = TypeVar("T")
R = TypeVar("R", JobRequestRecord, StageRequestRecord)
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


def answered_seed(options: Mapping[str, Any]) -> int | str | None:
    """Return the seed of a request for its response; None if its options are invalid."""
    try:
        return seed_record(read_options(options).seed)
    except RequestError:
        return None


def read_payload(record: PayloadRecord) -> Payload:
    """Read the declaration of a payload, without its length.

    Raises:
        RequestError: an enum value is unknown.
    """
    tensor, image = record.tensor, record.image
    return Payload(
        _read(_KIND, record.kind),
        0,
        tensor=None if tensor is None else _read(_TENSOR, tensor.to_record()),
        image=None if image is None else _read(_IMAGE, image.to_record()),
    )


def _read(adapter: TypeAdapter[T], record: object) -> T:
    try:
        return adapter.validate_python(record)
    except ValidationError as error:
        problems = error.errors()[:_MOST_VIOLATIONS]
        violations = tuple(violation_of(dict(one)) for one in problems)
        listed = "; ".join(f"{one.field}: {one.description}" for one in violations)
        raise RequestError(listed, violations=violations) from None


def payload_record(payload: Payload, content: Content) -> PayloadRecord:
    """Make the record of a payload."""
    tensor, image = payload.tensor, payload.image
    return PayloadRecord(
        kind=payload.kind or "",
        tensor=None if tensor is None else TensorRecord(tensor.data_type or "", tensor.shape),
        image=None if image is None else image_record(image),
        content=content,
    )


def image_record(image: EncodedImage) -> ImageRecord:
    """Make the record of a picture's format and size."""
    return ImageRecord(image.format, image.width, image.height)


def picture_record(image: EncodedImage | None, content: Content) -> PictureRecord:
    """Make the record of a picture."""
    return PictureRecord(image_record(image or EncodedImage()), content)


def answerable(record: R) -> R:
    """Return a rejected request with an id and labels that fit into a response.

    Both are unchanged, or empty if they exceed their limits.
    """
    labels, request_id = record.labels, record.request_id
    try:
        check_labels(labels)
    except RequestError:
        labels = {}
    if len(request_id) > _LONGEST_ANSWERED_ID:
        request_id = ""
    return replace(record, request_id=request_id, labels=labels)


def error_record(error: VtryonError | JobError | None) -> ErrorRecord | None:
    """Make the record of a failure, of bounded size; None without one."""
    if error is None:
        return None
    reason = error.reason or Reason.STAGE_FAILED
    facts = list(error.metadata.items())[:_MOST_FACTS]
    return ErrorRecord(
        reason=reason.value,
        message=error.message[:_LONGEST_MESSAGE],
        metadata={key[:_LONGEST_FACT]: value[:_LONGEST_FACT] for key, value in facts},
    )


def hop_records(hops: Iterable[Hop]) -> tuple[HopRecord, ...]:
    """Make the records of timings."""
    return tuple(
        HopRecord(one.stage or "", one.queue_seconds, one.transfer_seconds, one.compute_seconds)
        for one in hops
    )


def unused_records(options: Iterable[UnusedOption]) -> tuple[UnusedOptionRecord, ...]:
    """Make the records of options without effect."""
    return tuple(UnusedOptionRecord(one.field, one.reason) for one in options)


def fit_records(fits: Iterable[Fit]) -> tuple[FitRecord, ...]:
    """Make the records of how pictures were resized."""
    return tuple(FitRecord(**plain(one)) for one in fits)


def event_record(update: JobUpdate) -> JobEventRecord:
    """Make the record of an update of the job store."""
    job = update.job
    assert job is not None
    assert job.state is not None
    return JobEventRecord(
        job_id=job.id,
        request_id=job.request_id,
        sequence=update.sequence,
        at=update.at,
        state=job.state.name,
        attempts=job.attempts,
        error=error_record(job.error),
        labels=job.labels,
    )
