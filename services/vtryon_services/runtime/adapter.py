"""Between gRPC and a service; but for the interceptor, only this code touches a ServicerContext.

A method is an async generator: of events, of messages, or of one message. The adapter reads
requests and writes what is given, checks streams against the grammar and the limits, keeps the
deadline, and turns errors into statuses.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from opentelemetry import trace

from vtryon import events, status
from vtryon.channel import TENANT_KEY
from vtryon.errors import (
    DeadlineError,
    ProtocolError,
    Reason,
    RequestError,
    StageError,
    UnavailableError,
    VtryonError,
)
from vtryon.events import Chunk, Event
from vtryon.framing import EVENT_TAG, REQUEST_TAG, read_chunk, write_chunk
from vtryon.grammar import Requests, Responses
from vtryon.messages import ProtoType
from vtryon.stream import CONTENT_KEY, REQUEST_ID_KEY, is_being_cancelled
from vtryon_services.runtime.call import Call, Incoming
from vtryon_services.runtime.declarations import check_payloads, unknown_enum
from vtryon_services.runtime.settings import ServiceSettings

_log = structlog.get_logger("vtryon.service")
S = TypeVar("S", bound=ProtoType)
_MAX_REQUEST_ID = 128

Serve = Callable[[S, Incoming, Call], AsyncGenerator[Any, None]]


class Replies(Enum):
    """What a method gives: events of the grammar, plain messages or their bytes, or one message."""

    EVENTS = "events"
    MESSAGES = "messages"
    ONE = "one"


@dataclass(frozen=True, slots=True)
class Method(Generic[S]):
    """One RPC of a service: its name, its messages, and the generator that serves it."""

    name: str
    request: type[Message]
    start: type[S]
    serve: Serve[S]
    streams_requests: bool = True
    replies: Replies = Replies.EVENTS


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service, ready to be added to a server.

    Attributes:
        is_ready: asked every second; the health service says what it says.
        hand_over: called when draining begins, where there may be other replicas: ends the calls
            that can go on elsewhere.
        retire: called when draining begins, always: begin nothing new.
        close: called when the server has drained.
    """

    stage: str
    proto_name: str
    methods: tuple[Method[Any], ...]
    settings: ServiceSettings
    is_ready: Callable[[], Awaitable[bool]] | None = None
    hand_over: Callable[[], Awaitable[None]] | None = None
    retire: Callable[[], Awaitable[None]] | None = None
    close: Callable[[], Awaitable[None]] | None = None

    def handler(self) -> grpc.GenericRpcHandler:
        """Make what grpc.aio takes; messages stay bytes until the adapter reads them."""
        handlers = {method.name: self._rpc(method) for method in self.methods}
        return grpc.method_handlers_generic_handler(self.proto_name, handlers)

    def _rpc(self, method: Method[Any]) -> grpc.RpcMethodHandler:
        async def behaviour(request: Any, context: grpc.aio.ServicerContext) -> bytes | None:
            return await _Exchange(self, method, context).run(request)

        one = method.replies is Replies.ONE
        if method.streams_requests:
            make = (
                grpc.stream_unary_rpc_method_handler
                if one
                else grpc.stream_stream_rpc_method_handler
            )
        else:
            make = (
                grpc.unary_unary_rpc_method_handler if one else grpc.unary_stream_rpc_method_handler
            )
        return make(behaviour)


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
        self._reply: bytes | None = None

    async def run(self, request: bytes | None) -> bytes | None:
        """Serve the call, and end it with a status; gives the reply where there is but one."""
        failure = await self._attempt(request)
        if self._context.done():
            raise asyncio.CancelledError  # the caller has left, there is nobody to tell
        if failure is not None:
            # Its frames hold the payloads, and grpc.aio keeps what an aborted call raised.
            failure.__cause__ = failure.__context__ = None
            await self._abort(failure.with_traceback(None))
        return self._reply

    async def _attempt(self, request: bytes | None) -> VtryonError | None:
        try:
            with named_failures(self._service.stage, self._call):
                async with asyncio.timeout(self._call.remaining_seconds):
                    await self._serve(request)
        except VtryonError as error:
            return error
        return None

    def _describe_call(self) -> Call:
        metadata = dict(self._context.invocation_metadata() or ())
        remaining = self._context.time_remaining()
        default = self._settings.default_timeout_seconds
        request_id = str(metadata.get(REQUEST_ID_KEY) or uuid.uuid4().hex)[:_MAX_REQUEST_ID]
        structlog.contextvars.bind_contextvars(request_id=request_id)
        return Call(
            request_id=request_id,
            timeout_seconds=default if remaining is None else remaining,
            timeout_is_default=remaining is None,
            tenant=str(metadata.get(TENANT_KEY) or "")[:_MAX_REQUEST_ID],
            content_digest=str(metadata.get(CONTENT_KEY) or "")[:_MAX_REQUEST_ID],
            span=trace.get_current_span(),
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
            async for reply in served:
                if self._method.replies is Replies.EVENTS:
                    grammar.event(reply)
                    await self._write(_encode(reply))
                elif self._method.replies is Replies.MESSAGES:
                    plain = isinstance(reply, bytes)
                    await self._write(reply if plain else reply.to_proto().SerializeToString())
                else:
                    self._reply = reply.to_proto().SerializeToString()
        if self._method.replies is Replies.EVENTS and not grammar.ended:
            raise StageError(f"{self._service.stage} ended its stream before `finished`")

    async def _write(self, raw: bytes) -> None:
        try:
            async with asyncio.timeout(self._settings.write_timeout_seconds):
                await self._context.write(raw)
        except TimeoutError:
            limit = self._settings.write_timeout_seconds
            raise UnavailableError(f"the caller read nothing for {limit:.3g} s") from None
        except (grpc.aio.InternalError, grpc.aio.UsageError):
            raise _CallerLeftError from None  # grpc.aio's way to say so

    async def _read_start(self) -> Any:
        raw = await self._context.read()
        if raw is grpc.aio.EOF:
            self._requests.message("half-close")
        message: Any = self._parse(raw)
        if message.WhichOneof("request") != "start":
            self._requests.message(message.WhichOneof("request") or "an empty message")
        return self._parse_start(message.start)

    def _parse_start(self, message: Message) -> Any:
        if name := unknown_enum(message):
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
        own = {"stage": str(self._service.stage), "request_id": self._call.request_id}
        error.metadata = {**own, **self._call.facts, **error.metadata}
        code, message, trailing = status.to_rpc(error)
        _log.info("refused", code=code.name, reason=error.reason, stage=str(self._service.stage))
        try:
            await self._context.abort(code, message, trailing)
        except grpc.aio.InternalError:
            raise asyncio.CancelledError from None  # as in `_write`


class _CallerLeftError(asyncio.CancelledError):
    """There is nobody to write to."""


@contextmanager
def named_failures(stage: str, call: Call) -> Iterator[None]:
    """Give what goes wrong in a call one of our names, and log what is no caller's business.

    Raises:
        VtryonError: as it was, of the deadline, or of the stage.
    """
    try:
        yield
    except VtryonError:
        raise
    except TimeoutError:
        limit = call.timeout_seconds
        raise DeadlineError(f"out of time: the call was given {limit:.3g} s") from None
    except asyncio.CancelledError as error:
        if is_being_cancelled() or isinstance(error, _CallerLeftError):
            raise
        # Something that it waited for was cancelled, not the call.
        raise _log_failure(stage, call) from None
    except Exception:
        raise _log_failure(stage, call) from None


def _log_failure(stage: str, call: Call) -> StageError:
    _log.exception("the service failed", stage=str(stage))
    return StageError(f"{stage} failed; its log has the cause under request id {call.request_id}")


def _encode(event: Event) -> bytes:
    if isinstance(event, Chunk):
        return write_chunk(EVENT_TAG, event.payload, event.offset, event.data)
    return events.to_proto(event).SerializeToString()
