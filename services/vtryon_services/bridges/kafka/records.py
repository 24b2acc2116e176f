"""Records of the schemas under protos/kafka, as frozen dataclasses with the same fields.

Values are those of Avro: enums are text, and a seed is a long or its digits. Reading a decoded
record can't fail; `conversions` checks values and converts them to the SDK's types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints


class AvroRecord:
    """A dataclass with the fields of a record of a schema."""

    __slots__ = ()

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read a record as the Avro library decodes it."""
        return cls(**{name: read(record[name]) for name, read in _readers(cls)})

    def to_record(self) -> dict[str, Any]:
        """Make the record that the Avro library encodes."""
        return {name: _to_avro(getattr(self, name)) for name, _ in _readers(type(self))}


class TopicRecord(AvroRecord):
    """The record of a message.

    Attributes:
        schema: name of the schema's file, without its suffix.
    """

    __slots__ = ()
    schema: ClassVar[str]


@dataclass(frozen=True, slots=True)
class Claim(AvroRecord):
    """Reference to an object of the claim-check store."""

    name: str
    sha256: str
    byte_length: int


@dataclass(frozen=True, slots=True)
class Content(AvroRecord):
    """Bytes: inline, or as a claim."""

    inline: bytes | None = None
    claim: Claim | None = None


@dataclass(frozen=True, slots=True)
class TensorRecord(AvroRecord):
    """Shape and element type of a tensor."""

    data_type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ImageRecord(AvroRecord):
    """Format and size of an encoded picture, in pixels; 0 is unknown."""

    format: str | None = None
    width: int = 0
    height: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadRecord(AvroRecord):
    """A tensor or a picture with its bytes."""

    kind: str
    tensor: TensorRecord | None = None
    image: ImageRecord | None = None
    content: Content


@dataclass(frozen=True, slots=True)
class PictureRecord(AvroRecord):
    """The picture of a job."""

    image: ImageRecord
    content: Content


@dataclass(frozen=True, slots=True)
class ErrorRecord(AvroRecord):
    """Reason, message and metadata of a failure."""

    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HopRecord(AvroRecord):
    """Timings of a stage, in seconds."""

    stage: str
    queue_seconds: float
    transfer_seconds: float
    compute_seconds: float

    @property
    def total_seconds(self) -> float:
        """Queue, transfer and compute together."""
        return self.queue_seconds + self.transfer_seconds + self.compute_seconds


@dataclass(frozen=True, slots=True)
class UnusedOptionRecord(AvroRecord):
    """An option without effect, and the reason."""

    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class FitRecord(AvroRecord):
    """How a picture was resized, in pixels."""

    subject: str
    from_width: int
    from_height: int
    to_width: int
    to_height: int
    method: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequestRecord(TopicRecord):
    """A request for a try-on; `options` are read by `conversions.read_options`."""

    schema = "job_request"
    request_id: str
    person: Content
    garments: tuple[Content, ...] = ()
    options: Mapping[str, Any]
    timeout_seconds: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEventRecord(TopicRecord):
    """A change of a job's state."""

    schema = "job_event"
    job_id: str
    request_id: str
    sequence: int
    at: datetime
    state: str
    attempts: int = 0
    error: ErrorRecord | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResponseRecord(TopicRecord):
    """The end of a job: a picture or an error."""

    schema = "job_response"
    job_id: str = ""
    request_id: str
    state: str
    picture: PictureRecord | None = None
    error: ErrorRecord | None = None
    seed: int | str | None = None
    attempts: int = 0
    wall_seconds: float | None = None
    hops: tuple[HopRecord, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    unused_options: tuple[UnusedOptionRecord, ...] = ()
    fits: tuple[FitRecord, ...] = ()
    model_digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequestRecord(TopicRecord):
    """A request to one stage, with the route and the inputs of the later stages."""

    schema = "stage_request"
    request_id: str
    options: Mapping[str, Any]
    payloads: tuple[PayloadRecord, ...]
    route: tuple[str, ...] = ()
    job_id: str | None = None
    hops: tuple[HopRecord, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    unused_options: tuple[UnusedOptionRecord, ...] = ()
    fits: tuple[FitRecord, ...] = ()
    model_digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResponseRecord(TopicRecord):
    """The result of one stage, or its error."""

    schema = "stage_response"
    request_id: str
    stage: str
    payloads: tuple[PayloadRecord, ...] = ()
    error: ErrorRecord | None = None
    hops: tuple[HopRecord, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    unused_options: tuple[UnusedOptionRecord, ...] = ()
    fits: tuple[FitRecord, ...] = ()
    model_digests: Mapping[str, str] = field(default_factory=dict)


def _find_readers(kind: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """Return the name of each field, and the function that converts its Avro value."""
    hints = get_type_hints(kind)
    return tuple((one.name, _reader(hints[one.name])) for one in fields(kind))


_readers: Callable[[Any], tuple[tuple[str, Callable[[Any], Any]], ...]] = cache(_find_readers)


def _reader(hint: Any) -> Callable[[Any], Any]:
    if isinstance(hint, type) and issubclass(hint, AvroRecord):
        return hint.from_record
    if isinstance(hint, UnionType):
        read = _reader(get_args(hint)[0])
        return lambda value: None if value is None else read(value)
    if get_origin(hint) is tuple:
        read_item = _reader(get_args(hint)[0])
        return lambda values: tuple(map(read_item, values))
    return lambda value: value


def _to_avro(value: Any) -> Any:
    if isinstance(value, AvroRecord):
        return value.to_record()
    return [_to_avro(one) for one in value] if isinstance(value, tuple) else value
