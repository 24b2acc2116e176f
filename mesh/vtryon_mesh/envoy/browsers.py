"""Which web pages may call the edge, with which methods and headers (CORS)."""

from __future__ import annotations

from vtryon_mesh.description import Mesh
from vtryon_mesh.envoy.pieces import TYPES, Config

# gRPC-Web's, and those of REST's OpenAPI document.
METHODS = ("GET", "POST", "DELETE", "OPTIONS")
REQUEST_HEADERS = (
    "accept",
    "authorization",
    "content-type",
    "grpc-timeout",
    "idempotency-key",
    "last-event-id",
    "prefer",
    "traceparent",
    "tracestate",
    "x-grpc-web",
    "x-request-id",
    "x-user-agent",
)
RESPONSE_HEADERS = (
    "grpc-message",
    "grpc-status",
    "grpc-status-details-bin",
    "location",
    "preference-applied",
    "retry-after",
    "server-timing",
    "x-request-id",
    "x-vtryon-ignored",
    "x-vtryon-job",
    "x-vtryon-model-digests",
    "x-vtryon-seed",
    "x-vtryon-unused-options",
)


def cors(mesh: Mesh) -> Config:
    """Let in pages of the origins that the description names."""
    return {
        "@type": f"{TYPES}extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": [
            {"safe_regex": {"regex": origin}} for origin in mesh.edge.cors_origins
        ],
        "allow_methods": ", ".join(METHODS),
        "allow_headers": ", ".join(REQUEST_HEADERS),
        "expose_headers": ", ".join(RESPONSE_HEADERS),
        "max_age": "86400",
        "forward_not_matching_preflights": False,
    }
