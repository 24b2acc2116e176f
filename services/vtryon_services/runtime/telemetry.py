"""Logs, traces and metrics of a process. None ever holds a prompt, a picture or a token."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import structlog
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from vtryon.errors import SettingsError
from vtryon_services.runtime.settings import ProcessSettings


def set_up_logs(settings: ProcessSettings) -> None:
    """Log to standard error: JSON in production, coloured lines in development."""
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if settings.profile == "production"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_trace,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            getattr(logging, settings.log_level.upper())
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def set_up_export(settings: ProcessSettings, name: str) -> Callable[[], None]:
    """Send spans and metrics to the OTLP endpoint, where one is set; gives what flushes them.

    Metrics go every minute, or as OTEL_METRIC_EXPORT_INTERVAL says in milliseconds; Prometheus
    fetches them where `prometheus_listen` is set.

    Raises:
        SettingsError: Prometheus' port is taken, or no address.
    """
    resource = Resource.create({"service.name": f"vtryon-{name}"})
    readers: list[MetricReader] = []
    closing: list[Callable[[], object]] = []
    if endpoint := settings.otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        traces = TracerProvider(resource=resource)
        spans = OTLPSpanExporter(endpoint=endpoint, insecure=True)
        traces.add_span_processor(BatchSpanProcessor(spans))
        trace.set_tracer_provider(traces)
        closing.append(traces.shutdown)
        measured = OTLPMetricExporter(endpoint=endpoint, insecure=True)
        readers.append(PeriodicExportingMetricReader(measured))
    if listen := settings.prometheus_listen:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader

        closing.append(_serve_prometheus(listen))
        readers.append(PrometheusMetricReader())
    if readers:
        measures = MeterProvider(readers, resource)
        metrics.set_meter_provider(measures)
        closing.append(measures.shutdown)

    def close() -> None:
        for one in closing:
            one()

    return close


def _serve_prometheus(listen: str) -> Callable[[], object]:
    from prometheus_client import start_http_server

    host, _, port = listen.rpartition(":")
    try:
        server, _ = start_http_server(int(port), host)
    except (OSError, ValueError) as error:
        raise SettingsError(f"prometheus_listen is {listen!r}: {error}") from error

    def close() -> None:
        server.shutdown()
        server.server_close()

    return close


def _add_trace(
    _logger: object, _name: str, event: structlog.types.EventDict
) -> structlog.types.EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
    return event
