"""Between gRPC and a service; apart from the interceptor, only this code uses a ServicerContext.

A method is an async generator of events, of messages, or of one message. The adapter reads
requests and writes responses, checks streams against the grammar and the limits, enforces the
deadline, and converts errors to statuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from opentelemetry import trace

from vtryon.errors import RequestError, StageError, UnavailableError, VtryonError
from vtryon.events import Chunk
from vtryon.wire import status
from vtryon.wire.framing import write_event
from vtryon.wire.grammar import Responses
from vtryon_services.rpc.call import Call, Incoming
from vtryon_services.rpc.failures import ClientDisconnectedError, named_failures
from vtryon_services.rpc.identity import CallerIdentity, new_request_id, read_identity
from vtryon_services.rpc.method import Method, Replies
from vtryon_services.rpc.open_calls import OpenCall, OpenCalls
from vtryon_services.rpc.request_reader import RequestReader
from vtryon_services.runtime.settings import ServiceSettings
from vtryon_services.validation.declarations import check_payloads

_log = structlog.get_logger("vtryon.service")


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service, ready to be added to a server.

    Attributes:
        is_ready: polled every second for the health service.
        hand_over: called when draining begins, if there may be other replicas: ends the calls that
            can fail over.
        retire: always called when draining begins: start nothing new.
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

    def handler(self, calls: OpenCalls) -> grpc.GenericRpcHandler:
        """Return the handler for grpc.aio; messages stay bytes until the adapter reads them.

        Args:
            calls: the open calls of the process.
        """
        handlers = {method.name: self._rpc(method, calls) for method in self.methods}
        return grpc.method_handlers_generic_handler(self.proto_name, handlers)

    def _rpc(self, method: Method[Any], calls: OpenCalls) -> grpc.RpcMethodHandler:
        async def behaviour(request: Any, context: grpc.aio.ServicerContext) -> bytes | None:
            return await _Exchange(self, method, context, calls).run(request)

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
        self,
        service: Service,
        method: Method[Any],
        context: grpc.aio.ServicerContext,
        calls: OpenCalls,
    ) -> None:
        self._service = service
        self._settings = service.settings
        self._method = method
        self._context = context
        self._calls = calls
        self._requests = RequestReader(method, service.settings, context)
        self._refusal: RequestError | None = None
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
        ended: OpenCall | None = None
        try:
            if self._refusal is not None:
                raise self._refusal
            with (
                named_failures(self._service.stage, self._call),
                self._calls.enter(
                    self._call.tenant, ends_at_drain=self._method.ends_at_drain
                ) as ended,
            ):
                async with ended.within(self._call.remaining_seconds):
                    await self._serve(request, ended)
        except VtryonError as error:
            return (ended and ended.refusal) or error
        return None

    def _describe_call(self) -> Call:
        try:
            identity = read_identity(self._context.invocation_metadata() or ())
        except RequestError as error:
            self._refusal, identity = error, CallerIdentity(new_request_id(), "", "")
        remaining = self._context.time_remaining()
        default = self._settings.default_timeout_seconds
        structlog.contextvars.bind_contextvars(request_id=identity.request_id)
        return Call(
            request_id=identity.request_id,
            timeout_seconds=default if remaining is None else remaining,
            timeout_is_default=remaining is None,
            tenant=identity.tenant,
            content_digest=identity.content_digest,
            span=trace.get_current_span(),
        )

    async def _serve(self, request: bytes | None, opened: OpenCall) -> None:
        if not self._method.streams_requests:
            start = self._requests.parse(request or b"")
            await self._answer(start, Incoming((), self._no_chunks()))
            return
        start = await self._requests.start(opened)
        check_payloads(start.payloads, self._settings.max_payload_bytes)
        declared = sum(payload.byte_length for payload in start.payloads)
        with self._calls.declared.holding(self._call.tenant, declared):
            await self._answer(start, Incoming(start.payloads, self._requests.chunks()))

    async def _answer(self, start: Any, incoming: Incoming) -> None:
        grammar = Responses()
        async with aclosing(self._method.serve(start, incoming, self._call)) as served:
            async for reply in served:
                if self._method.replies is Replies.EVENTS:
                    grammar.event(reply)
                    await self._write(write_event(reply))
                elif self._method.replies is Replies.MESSAGES:
                    await self._write(_serialize(reply))
                else:
                    # A large answer takes long; the event loop goes on meanwhile.
                    made = isinstance(reply, bytes)
                    self._reply = reply if made else await asyncio.to_thread(_serialize, reply)
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
            raise ClientDisconnectedError from None  # grpc.aio's way to say so

    async def _no_chunks(self) -> AsyncIterator[Chunk]:
        return
        yield

    async def _abort(self, error: VtryonError) -> None:
        own = {"stage": str(self._service.stage), "request_id": self._call.request_id}
        error.metadata = {**own, **self._call.facts, **error.metadata}
        code, message, trailing = status.to_rpc(error)
        _log.info("refused", code=code.name, reason=error.reason, stage=str(self._service.stage))
        try:
            await self._context.abort(code, message, trailing)
        except grpc.aio.InternalError:
            raise asyncio.CancelledError from None  # as in `_write`


def _serialize(reply: Any) -> bytes:
    """Give a message's bytes; who serves may have made them already."""
    return reply if isinstance(reply, bytes) else reply.to_proto().SerializeToString()
