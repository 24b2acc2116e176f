"""A service in the caller's process, called without a wire: the same checks, events, errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Self

import grpc
from opentelemetry import trace

from vtryon.errors import Reason, VtryonError
from vtryon.events import Event
from vtryon.types import Start
from vtryon.wire.payloads import Outgoing, chunks
from vtryon.wire.status import REASONS
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.call import Call, Incoming
from vtryon_services.rpc.failures import named_failures
from vtryon_services.rpc.interceptors import conclude
from vtryon_services.rpc.method import Method
from vtryon_services.validation.declarations import check_payloads

_tracer = trace.get_tracer("vtryon")


class LocalStage:
    """Opens calls of a service's one method, as the SDK's client of the stage does."""

    def __init__(self, service: Service) -> None:
        [self._method] = service.methods
        self._service = service

    def open(
        self,
        start: Start,
        outgoing: Sequence[Outgoing],
        *,
        timeout_seconds: float,
        request_id: str,
        tenant: str = "",
        content_digest: str = "",
    ) -> LocalCall:
        """Make the call; it begins when it is iterated."""
        call = Call(
            request_id,
            timeout_seconds,
            timeout_is_default=False,
            tenant=tenant,
            content_digest=content_digest,
        )
        declared = replace(start, payloads=tuple(item.payload for item in outgoing))
        return LocalCall(self._service, self._method, declared, outgoing, call)

    async def recovered(
        self, silent_seconds: float, remaining_seconds: float, *, answered: bool
    ) -> None:
        """Return at once: a service of this process has no connection to lose."""

    async def close(self) -> None:
        """Hold nothing: the service is closed by whom it belongs to."""


class LocalCall:
    """One call: an async context manager that cancels when it is left, and an async iterator."""

    def __init__(
        self,
        service: Service,
        method: Method[Any],
        start: Start,
        outgoing: Sequence[Outgoing],
        call: Call,
    ) -> None:
        self._service = service
        self._call = call
        self._start = start
        self._outgoing = outgoing
        self._method = method
        self._events: AsyncGenerator[Event, None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._events is not None:
            await self._events.aclose()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Give the events as they come.

        Raises:
            VtryonError: as the service's callers see it across a wire.
        """
        name = f"{self._service.proto_name}/{self._method.name}"
        span, code = _tracer.start_span(name, kind=trace.SpanKind.SERVER), grpc.StatusCode.CANCELLED
        self._call.span = span
        try:
            async for event in self._serve():
                yield event
            code = grpc.StatusCode.OK
        except VtryonError as error:
            code = REASONS[error.reason or Reason.STAGE_FAILED].status
            facts = {"stage": str(self._service.stage), "request_id": self._call.request_id}
            error.metadata = {**facts, **self._call.facts, **error.metadata}
            raise
        finally:
            conclude(span, name, code, self._call.elapsed_seconds)
            span.end()

    async def _serve(self) -> AsyncIterator[Event]:
        check_payloads(self._start.payloads, self._service.settings.max_payload_bytes)
        incoming = Incoming(self._start.payloads, chunks(self._outgoing))
        self._events = self._method.serve(self._start, incoming, self._call)
        while (event := await self._next(self._events)) is not None:
            yield event

    async def _next(self, served: AsyncGenerator[Event, None]) -> Event | None:
        """Wait for an event until the deadline; None at the end."""
        with named_failures(self._service.stage, self._call):
            async with asyncio.timeout(self._call.remaining_seconds):
                return await anext(served, None)
