"""The client's end of a call that is answered by one message, or by a stream of plain ones."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from opentelemetry import propagate, trace

from vtryon.channel import Channel
from vtryon.errors import RequestError, VtryonError
from vtryon.messages import ProtoType
from vtryon.outcome import Outcome
from vtryon.status import from_aio_error
from vtryon.stream import REQUEST_ID_KEY

R = TypeVar("R", bound=ProtoType)
_tracer = trace.get_tracer("vtryon")


async def ask(
    channel: Channel,
    path: str,
    request: ProtoType | AsyncIterator[bytes],
    reply: type[R],
    *,
    timeout_seconds: float | None = None,
) -> R:
    """Call once, with a message or with a stream of them, and wait for the answer.

    Raises:
        VtryonError: the call failed.
    """
    with _observed(path) as span:
        if isinstance(request, ProtoType):
            call: Any = channel.grpc.unary_unary(
                path, request_serializer=_serialize, response_deserializer=reply.proto.FromString
            )
            sent: Any = _message(request)
        else:
            call = channel.grpc.stream_unary(path, response_deserializer=reply.proto.FromString)
            sent = request
        begun = call(sent, timeout=timeout_seconds, metadata=_metadata(channel, span))
        outcome = Outcome(begun)
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
    with _observed(path) as span:
        open_call = channel.grpc.unary_stream(
            path, request_serializer=_serialize, response_deserializer=reply.proto.FromString
        )
        call: Any = open_call(_message(request), metadata=_metadata(channel, span))
        try:
            async for message in call:
                yield reply.from_proto(message)
        finally:
            call.cancel()


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


def _metadata(channel: Channel, span: trace.Span) -> tuple[tuple[str, str], ...]:
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))
    return (*channel.metadata(), (REQUEST_ID_KEY, uuid.uuid4().hex), *carrier.items())


def _message(request: ProtoType) -> Message:
    try:
        return request.to_proto()
    except (ValueError, TypeError) as error:
        raise RequestError(f"a value does not fit its field: {error}") from error


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
