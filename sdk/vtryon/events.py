"""The events of a stream: one frozen dataclass per event, and `Event` as their union."""

from __future__ import annotations

from dataclasses import dataclass, field

from vtryon.messages import ProtoType
from vtryon.pictures import Picture
from vtryon.sampling_options import ReportedOptions
from vtryon.types import FitMethod, Numerics, Payload, ResumePoint, Stage
from vtryon.v1 import image_pb2, stream_pb2, tensor_pb2


@dataclass(frozen=True, slots=True)
class UnusedOption(ProtoType):
    """An option of the request that had no effect, and why."""

    proto = stream_pb2.UnusedOption
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Accepted(ReportedOptions):
    """The start message is valid; reports the values that the server chose. See stream.proto."""

    proto = stream_pb2.Accepted
    stage: Stage | None = None
    model_digest: str = ""
    numerics: Numerics | None = None
    timeout_seconds: float = 0.0
    timeout_is_default: bool = False
    sigmas: tuple[float, ...] = ()
    width: int | None = None
    height: int | None = None
    cached: bool | None = None
    unused_options: tuple[UnusedOption, ...] = ()


@dataclass(frozen=True, slots=True)
class Queued(ProtoType):
    """The request is queued after `position` requests, for about `expected_seconds`."""

    proto = stream_pb2.Queued
    stage: Stage | None
    position: int
    expected_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class StageStarted(ProtoType):
    """A stage accepted the request; `subject` names the pictures it processes, if not all."""

    proto = stream_pb2.StageStarted
    stage: Stage | None
    subject: str = ""
    accepted: Accepted | None = None


@dataclass(frozen=True, slots=True)
class StepFinished(ProtoType):
    """A denoise step is done: `step` of `steps`, at noise level `sigma`."""

    proto = stream_pb2.StepFinished
    step: int
    steps: int
    sigma: float
    compute_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StageFinished(ProtoType):
    """A stage gave its result."""

    proto = stream_pb2.StageFinished
    stage: Stage | None
    subject: str = ""
    elapsed_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Preview(ProtoType):
    """A small picture of where the sampling is heading, after `step` of `steps`."""

    proto = stream_pb2.Preview
    step: int
    steps: int
    picture: Picture | None


@dataclass(frozen=True, slots=True)
class ResumeChunk(ProtoType):
    """A piece of the latents after `step`, from which another server can go on."""

    proto = stream_pb2.ResumeChunk
    step: int
    offset: int
    byte_length: int
    data: bytes | bytearray | memoryview = field(repr=False)
    model_digest: str = ""
    encoders_digest: str = ""

    @property
    def point(self) -> ResumePoint:
        """Where to go on with these latents: `resume` of a later request."""
        return ResumePoint(self.step, self.model_digest, self.encoders_digest)


@dataclass(frozen=True, slots=True)
class Output(ProtoType):
    """Declares the payloads of the result; their chunks follow."""

    proto = stream_pb2.Output
    payloads: tuple[Payload, ...]


@dataclass(frozen=True, slots=True)
class Chunk(ProtoType):
    """Bytes of one payload, from `offset` on."""

    proto = tensor_pb2.Chunk
    payload: int
    offset: int
    data: bytes | bytearray | memoryview = field(repr=False)


@dataclass(frozen=True, slots=True)
class Fit(ProtoType):
    """How a picture was brought to size, in pixels."""

    proto = image_pb2.Fit
    subject: str
    from_width: int
    from_height: int
    to_width: int
    to_height: int
    method: FitMethod | None = None
    note: str = ""

    @property
    def changed(self) -> bool:
        """True where the picture was not of that size already."""
        return (self.from_width, self.from_height) != (self.to_width, self.to_height)


@dataclass(frozen=True, slots=True)
class Hop(ProtoType):
    """One stage's share of the time, in seconds; see `Ledger`."""

    proto = stream_pb2.Hop
    stage: Stage | None
    subject: str = ""
    start_seconds: float = 0.0
    queue_seconds: float = 0.0
    transfer_seconds: float = 0.0
    compute_seconds: float = 0.0
    critical: bool = True

    @property
    def total_seconds(self) -> float:
        """Queue, transfer and compute together."""
        return self.queue_seconds + self.transfer_seconds + self.compute_seconds


@dataclass(frozen=True, slots=True)
class Ledger(ProtoType):
    """Timings: the critical hops sum to the wall time, the remaining ones ran in parallel."""

    proto = stream_pb2.Ledger
    wall_seconds: float
    hops: tuple[Hop, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished(ProtoType):
    """The end of a stream that went well."""

    proto = stream_pb2.Finished
    ledger: Ledger | None = None
    fits: tuple[Fit, ...] = ()


Event = (
    Accepted
    | Queued
    | StageStarted
    | StepFinished
    | StageFinished
    | Preview
    | ResumeChunk
    | Output
    | Chunk
    | Finished
)
Progress = StageStarted | StepFinished | StageFinished

_FIELDS: dict[str, type[Event]] = {
    "accepted": Accepted,
    "queued": Queued,
    "preview": Preview,
    "resume_chunk": ResumeChunk,
    "output": Output,
    "chunk": Chunk,
    "finished": Finished,
    "stage_started": StageStarted,
    "step_finished": StepFinished,
    "stage_finished": StageFinished,
}
_NAMES = {kind: name for name, kind in _FIELDS.items()}


def name_of(event: Event) -> str:
    """Name the event as the stream's grammar does: all progress is "progress"."""
    return "progress" if isinstance(event, Progress) else field_of(event)


def field_of(event: Event) -> str:
    """Name the event as its field in stream.proto, progress by its kind."""
    return _NAMES[type(event)]


def from_proto(message: stream_pb2.Event) -> Event:
    """Read one response message.

    Raises:
        ValueError: the message is empty, or of a kind newer than this code.
    """
    name = message.WhichOneof("event")
    if name == "chunk":
        return Chunk(message.chunk.payload, message.chunk.offset, message.chunk.data)
    if name == "progress":
        update = message.progress.WhichOneof("update")
        if update is not None:
            return _FIELDS[update].from_proto(getattr(message.progress, update))
    if name is None or name == "progress":
        raise ValueError("a response without an event")
    return _FIELDS[name].from_proto(getattr(message, name))


def to_proto(event: Event) -> stream_pb2.Event:
    """Make the response message of an event."""
    message = stream_pb2.Event()
    holder = message.progress if isinstance(event, Progress) else message
    getattr(holder, field_of(event)).CopyFrom(event.to_proto())
    return message
