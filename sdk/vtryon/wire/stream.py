"""The client's end of one streaming call."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self

import grpc
from google.protobuf.message import DecodeError, Message
from opentelemetry import propagate, trace

from vtryon import events
from vtryon.errors import DeadlineError, ProtocolError, Reason, VtryonError
from vtryon.events import Event, StepFinished
from vtryon.messages import request_message
from vtryon.types import Start
from vtryon.v1 import (
    decoding_pb2,
    latent_encoder_pb2,
    pipeline_pb2,
    sampling_pb2,
    stream_pb2,
    text_encoder_pb2,
)
from vtryon.wire.call_status import CallStatus
from vtryon.wire.channel import TENANT_KEY, Channel
from vtryon.wire.framing import EVENT_TAG, REQUEST_TAG, read_chunk, write_chunk
from vtryon.wire.grammar import DEFAULT_CHUNK_BYTES, Requests, Responses
from vtryon.wire.payloads import Outgoing, chunks

REQUEST_ID_KEY = "x-request-id"
CONTENT_KEY = "x-vtryon-content-digest"
_tracer = trace.get_tracer("vtryon")


class StreamMethod(NamedTuple):
    """A streaming RPC: its path, and the message of its requests."""

    path: str
    request: type[Message]


ENCODE_LATENTS = StreamMethod(
    "/vtryon.v1.LatentEncoderService/Encode", latent_encoder_pb2.EncodeLatentsRequest
)
ENCODE_TEXT = StreamMethod(
    "/vtryon.v1.TextEncoderService/Encode", text_encoder_pb2.EncodeTextRequest
)
SAMPLE = StreamMethod("/vtryon.v1.SamplingService/Sample", sampling_pb2.SampleRequest)
DECODE = StreamMethod("/vtryon.v1.DecodingService/Decode", decoding_pb2.DecodeRequest)
TRY_ON = StreamMethod("/vtryon.v1.PipelineService/TryOn", pipeline_pb2.TryOnRequest)


class StreamCall:
    """Sends start and payloads, yields events, and owns the call.

    An async context manager and an async iterator. Leaving the context, closing the iteration or an
    error at either end cancels the call; the server then frees the batch slot before its next step.

    Args:
        channel: the connection.
        method: the RPC.
        start: the start message; its payloads are filled in from `outgoing`.
        outgoing: the payloads, in order.
        timeout_seconds: deadline of the call; None: the server's default.
        request_id: identifies the request in logs and traces; None generates one.
        tenant: tenant of the call, in a process that serves several; scheduling is fair among them.
        content_digest: digest of the input. A mesh may route equal digests to the same replica,
            whose cache holds the result.
        chunk_bytes: chunk size of payloads passed as a whole, up to 1 MiB.
    """

    def __init__(
        self,
        channel: Channel,
        method: StreamMethod,
        start: Start,
        outgoing: Sequence[Outgoing] = (),
        *,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
        tenant: str = "",
        content_digest: str = "",
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    ) -> None:
        self._channel = channel
        self._method = method
        self._start = replace(start, payloads=tuple(item.payload for item in outgoing))
        self._outgoing = outgoing
        self._chunk_bytes = chunk_bytes
        self._timeout_seconds = timeout_seconds
        self._named = {TENANT_KEY: tenant, CONTENT_KEY: content_digest}
        self.request_id = request_id or uuid.uuid4().hex
        self._span: trace.Span = trace.INVALID_SPAN
        self._call: Any = None
        self._outcome = CallStatus()
        self._completed_steps = 0

    async def __aenter__(self) -> Self:
        first = self._method.request(start=request_message(self._start))
        self._span = _tracer.start_span(self._method.path[1:], kind=trace.SpanKind.CLIENT)
        open_call = self._channel.grpc.stream_stream(
            self._method.path, request_serializer=_serialize, response_deserializer=None
        )
        self._call = open_call(
            self._send(first), timeout=self._timeout_seconds, metadata=self._metadata()
        )
        self._outcome.watch(self._call, self._timeout_seconds)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
        self._span.end()

    def cancel(self) -> None:
        """Leave the call; does nothing where it has ended."""
        if self._call is not None:
            self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Give the events as they come, each checked against the grammar.

        Raises:
            VtryonError: the call failed; the tree in `vtryon.errors` says how.
        """
        grammar = Responses()
        try:
            async for raw in self._call:
                event = _parse(raw)
                grammar.event(event)
                if isinstance(event, StepFinished):
                    self._completed_steps = event.step
                yield event
            if not grammar.ended:
                raise ProtocolError("the server closed the stream before `finished`")
            self._span.set_status(trace.StatusCode.OK)
        except grpc.aio.AioRpcError as error:
            raise self._failed(await self._outcome.error(error)) from None
        except asyncio.CancelledError:
            if (why := self._outcome.cancellation()) is None:
                self._span.set_status(trace.StatusCode.ERROR, "CANCELLED")
                raise
            raise self._failed(why) from self._outcome.send_error
        except VtryonError as error:
            raise self._failed(error) from error.__cause__
        finally:
            self.cancel()

    async def _send(self, first: Message) -> AsyncIterator[Message | bytes]:
        grammar = Requests()
        try:
            grammar.declare(self._start.payloads)
            yield first
            async for chunk in chunks(self._outgoing, self._chunk_bytes):
                grammar.chunk(chunk.payload, chunk.offset, len(chunk.data))
                yield write_chunk(REQUEST_TAG, chunk.payload, chunk.offset, chunk.data)
            grammar.message("half-close")
        except Exception as error:  # grpc.aio would only log it and cancel the call
            self._outcome.send_error = error
            raise

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(self._span))
        own = (*self._channel.metadata(), (REQUEST_ID_KEY, self.request_id))
        named = [(name, value) for name, value in self._named.items() if value]
        return (*own, *named, *carrier.items())

    def _failed(self, error: VtryonError) -> VtryonError:
        reason = error.reason or Reason.STAGE_FAILED
        self._span.set_status(trace.StatusCode.ERROR, reason.value)
        self._span.set_attribute("vtryon.reason", reason.value)
        if isinstance(error, DeadlineError):  # gRPC's own comes without details
            error.metadata.setdefault("completed_steps", str(self._completed_steps))
        return error


def _serialize(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _parse(raw: bytes) -> Event:
    if chunk := read_chunk(EVENT_TAG, raw):
        return chunk
    try:
        return events.from_proto(stream_pb2.Event.FromString(raw))
    except (DecodeError, ValueError) as error:
        message = f"a response that can't be read: {error}"
        raise ProtocolError(message, reason=Reason.MESSAGE_MALFORMED) from error
