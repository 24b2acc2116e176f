"""A real OTLP receiver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)


class Exports:
    """Tells those who wait that something was exported."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()

    async def notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, predicate: Callable[[], object], seconds: float = 60) -> None:
        """Wait until what was exported is as it has to be."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(predicate)


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver that keeps what it gets."""

    def __init__(self, exports: Exports) -> None:
        self.exports = exports
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.metadata: set[tuple[str, str | bytes]] = set()

    async def Export(self, request, context):  # noqa: N802
        self.requests.append(request)
        self.metadata.update(tuple(item) for item in context.invocation_metadata())
        await self.exports.notify()
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    """The receiver's other half: the newest values."""

    def __init__(self, exports: Exports) -> None:
        self.exports = exports
        self.points: dict[str, list] = {}

    async def Export(self, request, context):  # noqa: N802
        for resource in request.resource_metrics:
            for metric in (one for scope in resource.scope_metrics for one in scope.metrics):
                self.points[metric.name] = list(
                    getattr(metric, metric.WhichOneof("data")).data_points
                )
        await self.exports.notify()
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def total(self, name: str, **attributes: str) -> int:
        return sum(
            point.as_int
            for point in self.points[name]
            if attributes.items()
            <= {item.key: item.value.string_value for item in point.attributes}.items()
        )


@asynccontextmanager
async def otlp_receiver(
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[Receiver]:
    server = grpc.aio.server()
    receiver = Receiver(Exports())
    receiver.metrics = Metrics(receiver.exports)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(receiver.metrics, server)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    if credentials is None:
        receiver.port = server.add_insecure_port("127.0.0.1:0")
    else:
        receiver.port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    yield receiver
    await server.stop(0)
