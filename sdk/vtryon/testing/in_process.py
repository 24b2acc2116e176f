"""`InProcess`: functions that answer in place of a server, by the protocol of one."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Generic, TypeVar

import grpc

from vtryon.errors import ProtocolError
from vtryon.events import Accepted, Chunk, Event, Finished, Ledger, Output
from vtryon.health import CHECK, ServingStatus
from vtryon.jobs.types import (
    JOB_SERVICE,
    CancelJob,
    CreateJobStart,
    EraseJob,
    FetchPicture,
    GetJob,
    Job,
    JobPage,
    JobUpdate,
    ListJobs,
    WatchJob,
)
from vtryon.messages import ProtoType
from vtryon.pictures import Picture
from vtryon.testing.loopback import LoopbackChannel, LoopbackRequest
from vtryon.types import EncodedImage, Payload, PayloadKind, TryOnOptions, TryOnStart
from vtryon.v1 import job_pb2
from vtryon.wire.framing import REQUEST_TAG, read_chunk, write_event
from vtryon.wire.grammar import Requests, Responses
from vtryon.wire.payloads import Assembler, cut
from vtryon.wire.stream import TRY_ON

S = TypeVar("S", TryOnStart, CreateJobStart)


@dataclass(frozen=True, slots=True)
class _PictureCall(Generic[S]):
    """A call with pictures.

    Attributes:
        start: its start message.
        data: bytes of each payload, in the order of `start.payloads`.
        metadata: by lower-case name, such as "x-request-id" and "x-vtryon-tenant".
        timeout_seconds: time until the deadline when the call began; None without one.
    """

    start: S
    data: tuple[bytes, ...] = field(repr=False)
    metadata: Mapping[str, str]
    timeout_seconds: float | None

    @property
    def options(self) -> TryOnOptions:
        """The options as sent; None where the server would choose."""
        return self.start.options or TryOnOptions()

    @property
    def person(self) -> bytes:
        """The encoded picture of the person."""
        return self._pictures(PayloadKind.PERSON_IMAGE)[0]

    @property
    def garments(self) -> tuple[bytes, ...]:
        """The encoded pictures of the garments."""
        return self._pictures(PayloadKind.GARMENT_IMAGE)

    def _pictures(self, kind: PayloadKind) -> tuple[bytes, ...]:
        declared = zip(self.start.payloads, self.data, strict=True)
        return tuple(data for payload, data in declared if payload.kind is kind)


class TryOnCall(_PictureCall[TryOnStart]):
    """A call of `Client.try_on`: `options`, `person`, `garments`, `start`, `metadata`."""


class CreateJobCall(_PictureCall[CreateJobStart]):
    """A call of `Jobs.create`: `options`, `person`, `garments`, `start`, `metadata`."""


@dataclass(frozen=True, kw_only=True, repr=False)
class InProcess:
    """A `vtryon.Transport` to functions of this process, without a server or a port.

        async def dress(call: TryOnCall) -> AsyncIterator[vtryon.Event | vtryon.Picture]:
            yield vtryon.Accepted(seed=7, steps=1)
            yield vtryon.StepFinished(1, 1, sigma=0.0)
            yield vtryon.Picture(None, call.person)

        async with vtryon.Client(transport=InProcess(try_on=dress)) as client:
            ...

    The client's retries, deadlines, errors and checks of the stream's grammar are as with a server.
    A handler that raises a `VtryonError` fails the call with it. If the call is cancelled or out of
    time, the handler is cancelled, or its generator closed. Leaving the client waits for its
    handlers. Limits and ranges of a server are not checked: see `scripted_mesh`.

    The client raises `AssertionError` where a handler breaks the protocol or is missing, and any
    other exception of a handler as it is. None of them is a `VtryonError`, so that a program which
    handles those does not hide a wrong test.

    Attributes:
        try_on: an async generator of events, `Accepted` first, and of the `Picture`. A `Finished`
            with the wall time follows by itself.
        create_job: returns the job.
        get_job: returns the job.
        list_jobs: returns a page.
        cancel_job: returns the job.
        erase_job: returns the job.
        watch_job: an async generator of updates.
        fetch_picture: returns the picture.
    """

    try_on: Callable[[TryOnCall], AsyncIterator[Event | Picture]] | None = None
    create_job: Callable[[CreateJobCall], Awaitable[Job]] | None = None
    get_job: Callable[[GetJob], Awaitable[Job]] | None = None
    list_jobs: Callable[[ListJobs], Awaitable[JobPage]] | None = None
    cancel_job: Callable[[CancelJob], Awaitable[Job]] | None = None
    erase_job: Callable[[EraseJob], Awaitable[Job]] | None = None
    watch_job: Callable[[WatchJob], AsyncIterator[JobUpdate]] | None = None
    fetch_picture: Callable[[FetchPicture], Awaitable[Picture]] | None = None

    def __repr__(self) -> str:
        names = [own.name for own in fields(self) if getattr(self, own.name) is not None]
        return f"InProcess({', '.join(names)})"

    def open(self) -> grpc.aio.Channel:
        """Return a connection to the handlers; it is ready, and its health service serves."""
        return LoopbackChannel(self._answer)

    async def _answer(self, request: LoopbackRequest) -> AsyncGenerator[bytes, None]:
        if request.path == CHECK:
            yield bytes((0x08, ServingStatus.SERVING))
            return
        name, answer = _METHODS.get(request.path, ("", None))
        handler = getattr(self, name, None)
        if answer is None or handler is None:
            missing = f"`{name}`" if name else "no handler of that call"
            raise AssertionError(f"{request.path} was called, and {self!r} has no {missing}")
        async with aclosing(answer(handler, request)) as replies:
            async for reply in replies:
                yield reply


async def _try_on(handler: Any, request: LoopbackRequest) -> AsyncGenerator[bytes, None]:
    start, data = _upload(request, TRY_ON.request, TryOnStart)
    call = TryOnCall(start, data, request.metadata, request.timeout_seconds)
    async with aclosing(_events("try_on", handler(call))) as replies:
        async for reply in replies:
            yield reply


async def _create_job(handler: Any, request: LoopbackRequest) -> AsyncGenerator[bytes, None]:
    start, data = _upload(request, job_pb2.CreateJobRequest, CreateJobStart)
    call = CreateJobCall(start, data, request.metadata, request.timeout_seconds)
    yield _message("create_job", Job, await handler(call))


async def _one(
    name: str, kind: type[ProtoType], reply: type[ProtoType], handler: Any, request: LoopbackRequest
) -> AsyncGenerator[bytes, None]:
    yield _message(name, reply, await handler(_only(kind, request)))


async def _watch_job(handler: Any, request: LoopbackRequest) -> AsyncGenerator[bytes, None]:
    async with aclosing(_generator("watch_job", handler(_only(WatchJob, request)))) as updates:
        async for update in updates:
            yield _message("watch_job", JobUpdate, update)


async def _fetch_picture(handler: Any, request: LoopbackRequest) -> AsyncGenerator[bytes, None]:
    async def fetched() -> AsyncGenerator[Event | Picture, None]:
        yield Accepted()
        yield await handler(_only(FetchPicture, request))

    async with aclosing(_events("fetch_picture", fetched())) as replies:
        async for reply in replies:
            yield reply


_Answer = Callable[[Any, LoopbackRequest], AsyncGenerator[bytes, None]]
_METHODS: dict[str, tuple[str, _Answer]] = {
    TRY_ON.path: ("try_on", _try_on),
    f"{JOB_SERVICE}CreateJob": ("create_job", _create_job),
    f"{JOB_SERVICE}GetJob": ("get_job", partial(_one, "get_job", GetJob, Job)),
    f"{JOB_SERVICE}ListJobs": ("list_jobs", partial(_one, "list_jobs", ListJobs, JobPage)),
    f"{JOB_SERVICE}CancelJob": ("cancel_job", partial(_one, "cancel_job", CancelJob, Job)),
    f"{JOB_SERVICE}EraseJob": ("erase_job", partial(_one, "erase_job", EraseJob, Job)),
    f"{JOB_SERVICE}WatchJob": ("watch_job", _watch_job),
    f"{JOB_SERVICE}FetchPicture": ("fetch_picture", _fetch_picture),
}


def _upload(request: LoopbackRequest, message: Any, kind: type[S]) -> tuple[S, tuple[bytes, ...]]:
    """Read a start message and the payloads that it declares."""
    grammar = Requests()
    start = kind.from_proto(message.FromString(request.messages[0]).start)
    grammar.declare(start.payloads)
    assembler = Assembler(start.payloads)
    for raw in request.messages[1:]:
        chunk = read_chunk(REQUEST_TAG, raw) or Chunk.from_proto(message.FromString(raw).chunk)
        grammar.chunk(chunk.payload, chunk.offset, len(chunk.data))
        assembler.add(chunk)
    grammar.message("half-close")
    return start, tuple(map(bytes, assembler.buffers))


def _only(kind: type[ProtoType], request: LoopbackRequest) -> Any:
    [raw] = request.messages
    return kind.from_proto(kind.proto.FromString(raw))


async def _events(name: str, produced: Any) -> AsyncGenerator[bytes, None]:
    """Check and encode the events of a handler, its picture as payload, and add `finished`."""
    grammar, began = Responses(), time.monotonic()
    async with aclosing(_generator(name, produced)) as items:
        async for item in items:
            for event in _expanded(name, item):
                _check(name, grammar, event)
                yield write_event(event)
    if grammar.ended:
        return
    if grammar.state != "payloads":
        raise AssertionError(f"{name} ended without a picture")
    finished = Finished(Ledger(time.monotonic() - began))
    _check(name, grammar, finished)
    yield write_event(finished)


def _expanded(name: str, item: object) -> Iterator[Event]:
    if not isinstance(item, Picture):
        if not isinstance(item, Event):
            raise AssertionError(f"{name} gave {item!r:.80}, which is no event and no Picture")
        yield item
        return
    image = item.image or EncodedImage()
    yield Output((Payload(PayloadKind.IMAGE, len(item.data), image=image),))
    for offset, piece in cut(item.data):
        yield Chunk(0, offset, piece)


def _check(name: str, grammar: Responses, event: Event) -> None:
    try:
        grammar.event(event)
    except ProtocolError as error:
        raise AssertionError(f"{name} broke the grammar of the stream: {error}") from error


def _generator(name: str, produced: Any) -> AsyncGenerator[Any, None]:
    if not isinstance(produced, AsyncGenerator):
        if inspect.iscoroutine(produced):
            produced.close()  # else Python warns that nothing awaited it
        kind = type(produced).__name__
        raise AssertionError(f"{name} is an async generator, and this handler returned a {kind}")
    return produced


def _message(name: str, kind: type[ProtoType], reply: object) -> bytes:
    if not isinstance(reply, kind):
        raise AssertionError(f"{name} gives a {kind.__name__}, and this handler gave {reply!r:.80}")
    return reply.to_proto().SerializeToString()
