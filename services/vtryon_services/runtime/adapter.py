"""Between gRPC and a service: the only code that touches a ServicerContext.

A service is an async generator of events. The adapter reads requests and writes events, checks both
against the grammar and the limits, keeps the deadline, and turns errors into statuses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from vtryon import events, status
from vtryon.errors import (
    DeadlineError,
    ProtocolError,
    Reason,
    RequestError,
    StageError,
    UnavailableError,
    VtryonError,
)
from vtryon.events import Accepted, Chunk, Event, Output
from vtryon.framing import EVENT_TAG, REQUEST_TAG, read_chunk, write_chunk
from vtryon.grammar import Requests, Responses
from vtryon.messages import ProtoType
from vtryon.payloads import Assembler, Outgoing, chunks
from vtryon.stream import REQUEST_ID_KEY
from vtryon.tensors import byte_length
from vtryon.types import MAX_PICTURE_BYTES, Payload, Stage
from vtryon_services.runtime.settings import ServiceSettings

_log = structlog.get_logger("vtryon.service")
S = TypeVar("S", bound=ProtoType)


@dataclass(slots=True)
class Call:
    """What a service may know of the call that it serves.

    Attributes:
        facts: added to the metadata of an error that ends the call, such as the steps completed.
    """

    request_id: str
    timeout_seconds: float
    timeout_is_default: bool
    started: float = field(default_factory=time.monotonic)
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def elapsed_seconds(self) -> float:
        """Since the call began."""
        return time.monotonic() - self.started

    @property
    def remaining_seconds(self) -> float:
        """Until the deadline; below 0 behind it."""
        return self.timeout_seconds - self.elapsed_seconds


class Incoming:
    """The payloads of a request, as they arrive."""

    def __init__(self, payloads: Sequence[Payload], chunks: AsyncIterator[Chunk]) -> None:
        self.payloads = tuple(payloads)
        self.chunks = chunks

    async def receive(self) -> list[bytearray | memoryview]:
        """Wait for all payloads, each in one buffer.

        Raises:
            ProtocolError: the grammar does not hold, or the caller closed early.
        """
        assembler = Assembler(self.payloads)
        async for chunk in self.chunks:
            assembler.add(chunk)
        return assembler.buffers


Serve = Callable[[S, Incoming, Call], AsyncGenerator[Event, None]]


@dataclass(frozen=True, slots=True)
class Method(Generic[S]):
    """One RPC of a service: its name, its messages, and the generator that serves it."""

    name: str
    request: type[Message]
    start: type[S]
    serve: Serve[S]
    streams_requests: bool = True


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service, ready to be added to a server; `close` is called when that has drained."""

    stage: Stage
    proto_name: str
    methods: tuple[Method[Any], ...]
    settings: ServiceSettings
    close: Callable[[], Awaitable[None]] | None = None

    def handler(self) -> grpc.GenericRpcHandler:
        """Make what grpc.aio takes; messages stay bytes until the adapter reads them."""
        handlers = {method.name: self._rpc(method) for method in self.methods}
        return grpc.method_handlers_generic_handler(self.proto_name, handlers)

    def _rpc(self, method: Method[Any]) -> grpc.RpcMethodHandler:
        async def behaviour(request: Any, context: grpc.aio.ServicerContext) -> None:
            await _Exchange(self, method, context).run(request)

        if method.streams_requests:
            return grpc.stream_stream_rpc_method_handler(behaviour)
        return grpc.unary_stream_rpc_method_handler(behaviour)


async def send_output(outgoing: Sequence[Outgoing]) -> AsyncIterator[Event]:
    """Give the events of a result: its declaration, then its chunks."""
    yield Output(tuple(item.payload for item in outgoing))
    async for chunk in chunks(outgoing):
        yield chunk


class _Exchange:
    """One call from its first message to its status."""

    def __init__(
        self, service: Service, method: Method[Any], context: grpc.aio.ServicerContext
    ) -> None:
        self._service = service
        self._settings = service.settings
        self._method = method
        self._context = context
        self._requests = Requests()
        self._call = self._describe_call()

    async def run(self, request: bytes | None) -> None:
        """Serve the call, and end it with a status."""
        failure = await self._attempt(request)
        if self._context.done():
            raise asyncio.CancelledError  # the caller has left, there is nobody to tell
        if failure is not None:
            # Its frames hold the payloads, and grpc.aio keeps what an aborted call raised.
            failure.__cause__ = failure.__context__ = None
            await self._abort(failure.with_traceback(None))

    async def _attempt(self, request: bytes | None) -> VtryonError | None:
        try:
            async with asyncio.timeout(self._call.remaining_seconds):
                await self._serve(request)
        except VtryonError as error:
            return error
        except TimeoutError:
            limit = self._call.timeout_seconds
            return DeadlineError(f"out of time: the call was given {limit:.3g} s")
        except Exception:
            _log.exception("the service failed", stage=self._service.stage.value)
            return StageError(
                f"{self._service.stage} failed; its log has the cause under request id "
                f"{self._call.request_id or '(none)'}"
            )
        return None

    def _describe_call(self) -> Call:
        metadata = dict(self._context.invocation_metadata() or ())
        remaining = self._context.time_remaining()
        default = self._settings.default_timeout_seconds
        return Call(
            request_id=str(metadata.get(REQUEST_ID_KEY, "")),
            timeout_seconds=default if remaining is None else remaining,
            timeout_is_default=remaining is None,
        )

    async def _serve(self, request: bytes | None) -> None:
        if self._method.streams_requests:
            start = await self._read_start()
            self._requests.declare(start.payloads)
            check_payloads(start.payloads, self._settings.max_payload_bytes)
            incoming = Incoming(start.payloads, self._read_chunks())
        else:
            start = self._parse_start(self._parse(request or b""))
            incoming = Incoming((), self._no_chunks())
        grammar = Responses()
        async with aclosing(self._method.serve(start, incoming, self._call)) as served:
            async for event in served:
                await self._write(grammar, event)
        if not grammar.ended:
            raise StageError(f"{self._service.stage} ended its stream before `finished`")

    async def _write(self, grammar: Responses, event: Event) -> None:
        match event:
            case Chunk(payload, offset, data):
                grammar.chunk(payload, offset, len(data))
                raw = write_chunk(EVENT_TAG, payload, offset, data)
            case Output(payloads):
                grammar.declare(payloads)
                raw = events.to_proto(event).SerializeToString()
            case _:
                grammar.message(events.name_of(event))
                raw = events.to_proto(event).SerializeToString()
        try:
            async with asyncio.timeout(self._settings.write_timeout_seconds):
                await self._context.write(raw)
        except TimeoutError:
            limit = self._settings.write_timeout_seconds
            raise UnavailableError(f"the caller read nothing for {limit:.3g} s") from None
        except (grpc.aio.InternalError, grpc.aio.UsageError):
            raise asyncio.CancelledError from None  # grpc.aio's way to say that the caller has left

    async def _read_start(self) -> Any:
        raw = await self._context.read()
        if raw is grpc.aio.EOF:
            self._requests.message("half-close")
        message: Any = self._parse(raw)
        if message.WhichOneof("request") != "start":
            self._requests.message(message.WhichOneof("request") or "an empty message")
        return self._parse_start(message.start)

    def _parse_start(self, message: Message) -> Any:
        if name := _unknown_enum(message):
            raise RequestError(f"{name} has a value that this server does not know")
        return self._method.start.from_proto(message)

    async def _read_chunks(self) -> AsyncIterator[Chunk]:
        while (raw := await self._context.read()) is not grpc.aio.EOF:
            chunk = read_chunk(REQUEST_TAG, raw) or self._parse_chunk(raw)
            self._requests.chunk(chunk.payload, chunk.offset, len(chunk.data))
            yield chunk
        self._requests.message("half-close")

    def _parse_chunk(self, raw: bytes) -> Chunk:
        message: Any = self._parse(raw)
        kind = message.WhichOneof("request")
        if kind != "chunk":
            self._requests.message(kind or "an empty message")
        return Chunk.from_proto(message.chunk)

    async def _no_chunks(self) -> AsyncIterator[Chunk]:
        return
        yield

    def _parse(self, raw: bytes) -> Message:
        try:
            return self._method.request.FromString(raw)
        except DecodeError as error:
            name = self._method.request.DESCRIPTOR.name
            raise ProtocolError(
                f"bytes that are no {name}", reason=Reason.MESSAGE_MALFORMED
            ) from error

    async def _abort(self, error: VtryonError) -> None:
        error.metadata = {"stage": self._service.stage.value, **self._call.facts, **error.metadata}
        code, message, trailing = status.to_rpc(error)
        _log.info("refused", code=code.name, reason=error.reason, stage=self._service.stage.value)
        try:
            await self._context.abort(code, message, trailing)
        except grpc.aio.InternalError:
            raise asyncio.CancelledError from None  # as in `_write`


def check_payloads(payloads: Sequence[Payload], max_bytes: int) -> None:
    """Check declarations, before anything is kept.

    Raises:
        RequestError: a declaration contradicts itself, or is over the limit.
    """
    for number, payload in enumerate(payloads):
        name = f"payload {number} ({payload.kind or 'of no known kind'})"
        if payload.tensor is not None:
            _check_tensor(name, payload)
        elif payload.image is None:
            raise _payload_invalid(f"{name} declares neither a tensor nor a picture")
        elif payload.byte_length > MAX_PICTURE_BYTES:
            raise _too_large(name, payload.byte_length, MAX_PICTURE_BYTES)
        if payload.byte_length == 0:
            raise _payload_invalid(f"{name} is empty")
    total = sum(payload.byte_length for payload in payloads)
    if total > max_bytes:
        raise _too_large("the payloads together", total, max_bytes)


def _check_tensor(name: str, payload: Payload) -> None:
    spec = payload.tensor
    assert spec is not None
    if spec.data_type is None:
        raise _payload_invalid(f"{name} has no element type")
    if not 1 <= len(spec.shape) <= 8 or min(spec.shape) < 1:
        raise _payload_invalid(f"{name} has the shape {spec.shape}; 1 to 8 dimensions of 1 or more")
    if (wanted := byte_length(spec)) != payload.byte_length:
        raise _payload_invalid(
            f"{name} declares {payload.byte_length} bytes; "
            f"{spec.data_type} {spec.shape} is {wanted}"
        )


def _payload_invalid(message: str) -> RequestError:
    return RequestError(message, reason=Reason.PAYLOAD_INVALID)


def _too_large(name: str, size: int, limit: int) -> RequestError:
    return RequestError(
        f"{name}: {size} bytes are over the limit of {limit}",
        reason=Reason.PAYLOAD_TOO_LARGE,
        metadata={"limit_bytes": str(limit)},
    )


def _unknown_enum(message: Message) -> str | None:
    """Name a field, at any depth, whose enum value is newer than this code."""
    for descriptor, value in message.ListFields():
        values = value if descriptor.is_repeated else [value]
        if descriptor.enum_type is not None:
            if any(number not in descriptor.enum_type.values_by_number for number in values):
                return descriptor.name
        elif descriptor.message_type is not None:
            for item in values:
                if inner := _unknown_enum(item):
                    return f"{descriptor.name}.{inner}"
    return None


def accepted(stage: Stage, call: Call, **chosen: Any) -> Accepted:
    """Make the first event of a stream: the deadline that counts, and what the server chose."""
    return Accepted(
        stage=stage,
        timeout_seconds=call.timeout_seconds,
        timeout_is_default=call.timeout_is_default,
        **chosen,
    )
