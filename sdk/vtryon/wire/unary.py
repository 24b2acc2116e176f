"""The client's end of a call that is answered by one message, or by a stream of plain ones."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from opentelemetry import propagate, trace

from vtryon.errors import VtryonError
from vtryon.messages import ProtoType, request_message
from vtryon.wire.call_status import CallStatus
from vtryon.wire.channel import Channel
from vtryon.wire.status import from_aio_error
from vtryon.wire.stream import REQUEST_ID_KEY

R = TypeVar("R", bound=ProtoType)
_tracer = trace.get_tracer("vtryon")


async def ask(
    channel: Channel,
    path: str,
    request: ProtoType | Callable[[], AsyncIterator[bytes]],
    reply: type[R],
    *,
    timeout_seconds: float | None = None,
    idempotent: bool = True,
) -> R:
    """Call with a message, or with a stream of messages; return the response.

    Args:
        channel: the connection.
        path: of the RPC.
        request: the message, or a function that creates the stream of encoded messages for each
            attempt.
        reply: type of the response.
        timeout_seconds: deadline of the call; None: the server's default.
        idempotent: whether the call may be resent after a broken connection.

    Raises:
        VtryonError: the call failed.
    """
    sent = request_message(request) if isinstance(request, ProtoType) else request
    with _observed(path) as span, channel.attempts(timeout_seconds) as attempts:
        while True:
            seconds = await attempts.ready()
            try:
                return await _ask_once(channel, path, sent, reply, seconds, span)
            except VtryonError as error:
                if not attempts.again(error, idempotent=idempotent):
                    raise


async def _ask_once(
    channel: Channel,
    path: str,
    request: Message | Callable[[], AsyncIterator[bytes]],
    reply: type[R],
    seconds: float | None,
    span: trace.Span,
) -> R:
    outcome = CallStatus()
    read = reply.proto.FromString
    if isinstance(request, Message):
        call: Any = channel.grpc.unary_unary(path, _serialize, read)
        sent: Any = request
    else:
        call = channel.grpc.stream_unary(path, response_deserializer=read)
        sent = _sending(request(), outcome)
    begun = call(sent, timeout=seconds, metadata=_metadata(channel, span))
    outcome.watch(begun, seconds)
    with _translated(outcome):
        try:
            return reply.from_proto(await begun)
        except grpc.aio.AioRpcError as error:
            raise await outcome.error(error) from None


async def listen(
    channel: Channel, path: str, request: ProtoType, reply: type[R]
) -> AsyncGenerator[R, None]:
    """Call once, and give messages as they come; closing the iteration cancels the call.

    Raises:
        VtryonError: the call failed.
    """
    outcome = CallStatus()
    with _observed(path) as span:
        open_call = channel.grpc.unary_stream(
            path, request_serializer=_serialize, response_deserializer=reply.proto.FromString
        )
        sent = request_message(request)
        with channel.attempts(None) as attempts:
            await attempts.ready()
        call: Any = open_call(sent, metadata=_metadata(channel, span))
        outcome.watch(call)
        try:
            with _translated(outcome):
                async for message in call:
                    yield reply.from_proto(message)
        finally:
            call.cancel()


@contextmanager
def _translated(outcome: CallStatus) -> Iterator[None]:
    """Raise a call that was cancelled, but not by its caller, as an error of its own."""
    try:
        yield
    except asyncio.CancelledError:
        if (why := outcome.cancellation()) is None:
            raise
        raise why from outcome.send_error


@contextmanager
def _observed(path: str) -> Iterator[trace.Span]:
    span = _tracer.start_span(path[1:], kind=trace.SpanKind.CLIENT)
    try:
        yield span
        span.set_status(trace.StatusCode.OK)
    except grpc.aio.AioRpcError as error:
        raised = from_aio_error(error)
        span.set_status(trace.StatusCode.ERROR, raised.reason)
        raise raised from None
    except VtryonError as error:
        span.set_status(trace.StatusCode.ERROR, error.reason)
        raise
    finally:
        span.end()


async def _sending(messages: AsyncIterator[bytes], outcome: CallStatus) -> AsyncIterator[bytes]:
    try:
        async for message in messages:
            yield message
    except Exception as error:  # grpc.aio would only log it and cancel the call
        outcome.send_error = error
        raise


def _metadata(channel: Channel, span: trace.Span) -> tuple[tuple[str, str], ...]:
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))
    return (*channel.metadata(), (REQUEST_ID_KEY, uuid.uuid4().hex), *carrier.items())


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
