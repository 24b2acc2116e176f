"""Logs, traces and metrics of a process. None ever holds a prompt, a picture or a token."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import structlog
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from vtryon_services.runtime.settings import ServiceSettings


def set_up_logs(settings: ServiceSettings) -> None:
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


def set_up_export(settings: ServiceSettings, name: str) -> Callable[[], None]:
    """Send spans and metrics to the OTLP endpoint, where one is set; gives what flushes them.

    Metrics go every minute, or as OTEL_METRIC_EXPORT_INTERVAL says in milliseconds.
    """
    endpoint = settings.otlp_endpoint
    if endpoint is None:
        return lambda: None
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    resource = Resource.create({"service.name": f"vtryon-{name}"})
    traces = TracerProvider(resource=resource)
    traces.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=True))
    )
    trace.set_tracer_provider(traces)
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=endpoint, insecure=True))
    measures = MeterProvider([reader], resource)
    metrics.set_meter_provider(measures)

    def flush() -> None:
        traces.shutdown()
        measures.shutdown()

    return flush


def _add_trace(
    _logger: object, _name: str, event: structlog.types.EventDict
) -> structlog.types.EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
    return event
