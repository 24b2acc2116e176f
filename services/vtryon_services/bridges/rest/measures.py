"""Metrics of HTTP; every label has few values, whatever callers send."""

from __future__ import annotations

from opentelemetry import metrics
from starlette.types import Scope

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_OTHER = "_OTHER"
# Name, labels and buckets: OpenTelemetry's semantic conventions for HTTP servers; the last three
# buckets are ours, for try-ons take longer than pages.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120)
_seconds = metrics.get_meter("vtryon").create_histogram(
    "http.server.request.duration",
    unit="s",
    description="Duration of HTTP server requests.",
    explicit_bucket_boundaries_advisory=_BUCKETS,
)


def count_request(scope: Scope, status: int, seconds: float) -> None:
    """Count a request that was answered, by method, route and status."""
    method = scope["method"] if scope["method"] in _METHODS else _OTHER
    route = getattr(scope.get("route"), "path", "")
    labels = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
    }
    _seconds.record(seconds, labels)
