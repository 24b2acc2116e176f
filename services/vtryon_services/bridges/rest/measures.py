"""Metrics of HTTP; every label has few values, whatever callers send."""

from __future__ import annotations

from opentelemetry import metrics
from starlette.types import Scope

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_OTHER = "_OTHER"
# Name and labels: OpenTelemetry's semantic conventions for HTTP servers.
_seconds = metrics.get_meter("vtryon").create_histogram(
    "http.server.request.duration", unit="s", description="Duration of HTTP server requests."
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
