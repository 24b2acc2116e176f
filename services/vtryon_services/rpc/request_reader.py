"""Reads the requests of one call: sizes, times, grammar, and only then the messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from opentelemetry import metrics

from vtryon.errors import ProtocolError, Reason, RequestError
from vtryon.events import Chunk
from vtryon.wire.framing import REQUEST_TAG, read_chunk
from vtryon.wire.grammar import Requests
from vtryon_services.rpc.message_limits import (
    MAX_CHUNK_MESSAGE_BYTES,
    MAX_MESSAGE_BYTES,
    check_bytes,
    check_items,
)
from vtryon_services.rpc.method import Method
from vtryon_services.rpc.open_calls import OpenCall
from vtryon_services.runtime.settings import ServiceSettings
from vtryon_services.validation.declarations import unknown_enum

_CHUNK = bytes((REQUEST_TAG,))
_timeouts = metrics.get_meter("vtryon").create_counter(
    "vtryon.calls.timeouts", description="Calls whose next message did not come in time."
)


class RequestReader:
    """Reads a start message, and then chunks.

    Args:
        method: the RPC.
        settings: of its service: times.
        context: where the messages come from.
    """

    def __init__(
        self, method: Method[Any], settings: ServiceSettings, context: grpc.aio.ServicerContext
    ) -> None:
        self._method = method
        self._settings = settings
        self._context = context
        self._grammar = Requests()

    async def start(self, opened: OpenCall) -> Any:
        """Wait for the start message.

        Raises:
            ProtocolError: it did not come in time, or something else came.
            RequestError: it is over a limit.
        """
        seconds = self._settings.first_message_timeout_seconds
        try:
            async with opened.awaiting_start(seconds):
                raw = await self._context.read()
        except TimeoutError:
            raise opened.refusal or _nothing_came("first message", seconds) from None
        if raw is grpc.aio.EOF:
            self._grammar.message("half-close")
        check_bytes(raw, self._method.request)
        message: Any = self._parse(raw)
        if message.WhichOneof("request") != "start":
            self._grammar.message(message.WhichOneof("request") or "an empty message")
        start = self._convert(message.start)
        self._grammar.declare(start.payloads)
        return start

    def parse(self, raw: bytes) -> Any:
        """Read the only message of a call.

        Raises:
            ProtocolError: it is no message of this call.
            RequestError: it is over a limit.
        """
        check_bytes(raw, self._method.request, self._method.bulk)
        return self._convert(self._parse(raw))

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Give the chunks until the caller closes its side.

        Raises:
            ProtocolError: one did not come in time, or the grammar does not hold.
        """
        while (raw := await self._next()) is not grpc.aio.EOF:
            chunk = read_chunk(REQUEST_TAG, raw) or self._parse_chunk(raw)
            self._grammar.chunk(chunk.payload, chunk.offset, len(chunk.data))
            yield chunk
        self._grammar.message("half-close")

    async def _next(self) -> Any:
        seconds = self._settings.chunk_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._context.read()
        except TimeoutError:
            raise _nothing_came("next chunk", seconds) from None

    def _parse_chunk(self, raw: bytes) -> Chunk:
        """Parse a message that is no chunk in our own layout."""
        limit = MAX_CHUNK_MESSAGE_BYTES if raw[:1] == _CHUNK else MAX_MESSAGE_BYTES
        if len(raw) > limit:
            raise ProtocolError(
                f"a message of {len(raw)} bytes where a chunk can come; it takes {limit}"
            )
        message: Any = self._parse(raw)
        kind = message.WhichOneof("request")
        if kind != "chunk":
            self._grammar.message(kind or "an empty message")
        return Chunk.from_proto(message.chunk)

    def _convert(self, message: Message) -> Any:
        if name := unknown_enum(message):
            raise RequestError(f"{name} has a value that this server does not know")
        return self._method.start.from_proto(message)

    def _parse(self, raw: bytes) -> Message:
        kind = self._method.request
        try:
            message = kind.FromString(raw)
        except DecodeError as error:
            raise ProtocolError(
                f"bytes that are no {kind.DESCRIPTOR.name}", reason=Reason.MESSAGE_MALFORMED
            ) from error
        check_items(message)
        return message


def _nothing_came(what: str, seconds: float) -> ProtocolError:
    _timeouts.add(1, {"awaited": what})
    return ProtocolError(
        f"the {what} did not come within {seconds:.3g} s, which is the limit",
        reason=Reason.STREAM_INCOMPLETE,
    )
