"""A server interceptor: a span, a duration and a log line per call, whatever its outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from opentelemetry import context as context_api
from opentelemetry import metrics, propagate, trace

_log = structlog.get_logger("vtryon.rpc")
_tracer = trace.get_tracer("vtryon")
_durations = metrics.get_meter("vtryon").create_histogram(
    "rpc.server.duration", unit="ms", description="Calls, from their first byte to their end."
)
Behaviour = Callable[[Any, grpc.aio.ServicerContext], Awaitable[bytes | None]]


class TelemetryInterceptor(grpc.aio.ServerInterceptor):
    """Watches the calls of vtryon's own services."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Wrap the handler of a call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/vtryon."):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        for kind in ("stream_stream", "unary_stream", "stream_unary", "unary_unary"):
            if (behaviour := getattr(handler, kind)) is not None:
                make = getattr(grpc, f"{kind}_rpc_method_handler")
                return make(_observed(behaviour, method, metadata))
        return handler


def _observed(behaviour: Behaviour, method: str, metadata: dict[str, Any]) -> Behaviour:
    async def observed(request: Any, context: grpc.aio.ServicerContext) -> bytes | None:
        started = time.monotonic()
        # The caller's baggage comes along, not its span alone; this task ends with the call.
        context_api.attach(propagate.extract(metadata))
        with _tracer.start_as_current_span(
            method[1:],
            kind=trace.SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            code = grpc.StatusCode.UNKNOWN
            try:
                reply = await behaviour(request, context)
                code = grpc.StatusCode.OK
                return reply
            except asyncio.CancelledError:
                code = _why_cancelled(context)
                raise
            except grpc.aio.AbortError:
                code = _status_code(context)
                raise
            finally:
                seconds = time.monotonic() - started
                conclude(span, method[1:], code, seconds)
                _log.info("rpc", method=method, code=code.name, seconds=round(seconds, 4))

    return observed


def _why_cancelled(context: grpc.aio.ServicerContext) -> grpc.StatusCode:
    remaining = context.time_remaining()
    out_of_time = remaining is not None and remaining <= 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if out_of_time else grpc.StatusCode.CANCELLED


def _status_code(context: grpc.aio.ServicerContext) -> grpc.StatusCode:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next(
        (known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN
    )


def conclude(span: trace.Span, name: str, code: grpc.StatusCode, seconds: float) -> None:
    """Say how a call of `name`, "package.Service/Method", went: in its span and its duration.

    Names are those of OpenTelemetry's conventions for RPC.
    """
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    ok = code is grpc.StatusCode.OK
    span.set_status(
        trace.StatusCode.OK if ok else trace.StatusCode.ERROR, None if ok else code.name
    )
    service, _, method = name.partition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    _durations.record(1e3 * seconds, {**attributes, "rpc.grpc.status_code": code.value[0]})
