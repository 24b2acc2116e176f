"""Logs, traces and metrics of a process. None ever holds a prompt, a picture or a token."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable

import structlog
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from vtryon.errors import SettingsError
from vtryon_services.runtime.log_output import LogOutput
from vtryon_services.runtime.otlp import check_variables, exporter_options, is_disabled
from vtryon_services.runtime.settings import ProcessSettings


def set_up_logs(settings: ProcessSettings) -> Callable[[], None]:
    """Log to standard error: JSON in production, coloured lines in development.

    Returns:
        A function that writes the queued lines, for at most a second.
    """
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if settings.profile == "production"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    output = LogOutput(sys.stderr)
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
        logger_factory=output,
        cache_logger_on_first_use=False,
    )
    return output.close


def set_up_export(settings: ProcessSettings, name: str) -> Callable[[float], None]:
    """Send spans and metrics to an OTLP receiver, if one is set.

    The endpoint is OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or ..._METRICS_ENDPOINT, else
    `otlp_endpoint`, else OTEL_EXPORTER_OTLP_ENDPOINT. Headers, certificates and all other
    parameters are set by OpenTelemetry's own variables, as are the service's name and further
    attributes, by OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES. OTEL_SDK_DISABLED disables all
    of it. Metrics are sent every minute, or at OTEL_METRIC_EXPORT_INTERVAL in milliseconds;
    Prometheus scrapes them if `prometheus_listen` is set.

    Returns:
        A function that flushes pending data, for at most this many seconds.

    Raises:
        SettingsError: Prometheus' address is in use or invalid, or a variable of OpenTelemetry has
            an unsupported value.
    """
    if is_disabled():
        if settings.prometheus_listen:
            raise SettingsError(
                "OTEL_SDK_DISABLED is true: prometheus_listen would have no metrics"
            )
        return lambda _seconds: None
    check_variables()
    spans_to = exporter_options("TRACES", settings.otlp_endpoint)
    metrics_to = exporter_options("METRICS", settings.otlp_endpoint)
    resource = _resource(name)
    readers: list[MetricReader] = []
    closing: list[Callable[[], object]] = []
    if spans_to is not None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(**spans_to)))
        trace.set_tracer_provider(traces)
        closing.append(traces.shutdown)
    if metrics_to is not None:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter(**metrics_to)))
    if listen := settings.prometheus_listen:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader

        closing.append(_serve_prometheus(listen))
        readers.append(PrometheusMetricReader())
    if readers:
        measures = MeterProvider(readers, resource, shutdown_on_exit=False)
        metrics.set_meter_provider(measures)
        closing.append(measures.shutdown)
    return lambda seconds: _run_at_once(closing, seconds)


def _resource(name: str) -> Resource:
    """Describe the process: by OpenTelemetry's variables first, then by our name."""
    given = Resource.create()
    if not str(given.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        return given
    return given.merge(Resource({SERVICE_NAME: f"vtryon-{name}"}))


def _run_at_once(actions: list[Callable[[], object]], seconds: float) -> None:
    """Run actions in parallel; abandon those that exceed the timeout."""
    threads = [threading.Thread(target=_quietly, args=(one,), daemon=True) for one in actions]
    until = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _quietly(action: Callable[[], object]) -> None:
    try:
        action()
    except Exception as error:
        structlog.get_logger("vtryon.telemetry").warning("not flushed", error=type(error).__name__)


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
