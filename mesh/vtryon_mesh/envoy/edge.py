"""The Envoy at the door: who may come in, how often, and in which protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtryon_mesh.description import EDGE, HEALTH_PREFIX, TENANT_HEADER, Mesh, Service
from vtryon_mesh.envoy.pieces import (
    Address,
    Config,
    bootstrap,
    cluster,
    connection_manager,
    filter_of,
    health_route,
    listener,
    otlp_cluster,
    service_route,
    virtual_host,
    without_header,
)
from vtryon_mesh.envoy.tls import Identity, caller_tls, client_tls

_JWT_FILTER = "envoy.filters.http.jwt_authn"
_MAX_HEADERS_KIB = 32


@dataclass(frozen=True, slots=True)
class EdgePlace:
    """Where the edge is, and what is around it.

    Attributes:
        services: where every replica of each is: its sidecar, or itself where there are none. What
            is not there is not served.
        certificates: of the mesh; None where services are reached without TLS.
        jwks: the keys whose tokens are taken, as JSON or in a file; None lets everybody in.
        server_certificate: names `NAME.crt` and `NAME.key` for callers' TLS; None for none.
    """

    admin: Address
    listen: Address
    services: Mapping[str, Sequence[Address]]
    certificates: Path | None
    jwks: str | Path | None
    server_certificate: Identity | None = None
    access_log: Path | None = None
    otlp: Address | None = None


def render_edge(mesh: Mesh, given: EdgePlace) -> Config:
    """Render the edge."""
    edge = mesh.edge
    served = {name: mesh.services[name] for name in edge.serves if name in given.services}
    routes = [service_route(mesh, one, name, tried_again=True) for name, one in served.items()]
    host = virtual_host(
        [*routes, *_health(served)],
        typed_per_filter_config={"envoy.filters.http.cors": _cors(mesh)},
    )
    filters = [
        filter_of("cors", "Cors"),
        filter_of("grpc_web", "GrpcWeb"),
    ]
    if given.jwks is not None:
        filters += [_authentication(mesh, given.jwks), _scope(mesh)]
    filters.append(rate_limits(mesh))
    manager = connection_manager(
        EDGE,
        [],
        filters,
        access_log=given.access_log,
        otlp=given.otlp is not None,
        codec_type="AUTO",
        use_remote_address=True,
        generate_request_id=True,
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        max_request_headers_kb=_MAX_HEADERS_KIB,
        route_config={"name": EDGE, "virtual_hosts": [host]},
        local_reply_config=_json_errors(),
        request_headers_timeout="10s",
        server_header_transformation="PASS_THROUGH",
    )
    clusters = []
    for name, service in served.items():
        tls = None
        if given.certificates is not None:
            tls = client_tls(Identity(EDGE, given.certificates), mesh.identity(name))
        clusters.append(cluster(mesh, name, service, given.services[name], tls))
    if given.otlp is not None:
        clusters.append(otlp_cluster(given.otlp))
    socket = None if given.server_certificate is None else caller_tls(given.server_certificate)
    return bootstrap(EDGE, given.admin, [listener(EDGE, given.listen, manager, socket)], clusters)


def _health(served: Mapping[str, Service]) -> list[Config]:
    """Let the first gRPC service speak for all."""
    first = next((name for name, one in served.items() if one.grpc), None)
    return [] if first is None else [health_route(served[first], first)]


def _cors(mesh: Mesh) -> Config:
    return {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": [
            {"safe_regex": {"regex": origin}} for origin in mesh.edge.cors_origins
        ],
        "allow_methods": "GET, POST, OPTIONS",
        "allow_headers": "content-type, x-grpc-web, x-user-agent, grpc-timeout, authorization, "
        "traceparent, idempotency-key, prefer, accept, x-request-id",
        "expose_headers": "grpc-status, grpc-message, grpc-status-details-bin, x-request-id, "
        "retry-after, server-timing, x-vtryon-seed, location",
        "max_age": "86400",
        "forward_not_matching_preflights": False,
    }


def _authentication(mesh: Mesh, jwks: str | Path) -> Config:
    jwt = mesh.edge.jwt
    keys = {"filename": str(jwks)} if isinstance(jwks, Path) else {"inline_string": jwks}
    provider = {
        "issuer": jwt.issuer,
        "audiences": [jwt.audience],
        "require_expiration": True,
        "clock_skew_seconds": 30,
        "forward": False,
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "claim_to_headers": [{"header_name": TENANT_HEADER, "claim_name": jwt.tenant_claim}],
        "payload_in_metadata": "jwt_payload",
        "local_jwks": keys,
        "jwt_cache_config": {"jwt_cache_size": 1000},
    }
    return filter_of(
        "jwt_authn",
        "JwtAuthentication",
        providers={"callers": provider},
        rules=[
            {"match": {"prefix": HEALTH_PREFIX}},
            {"match": {"prefix": "/"}, "requires": {"provider_name": "callers"}},
        ],
        bypass_cors_preflight=True,
    )


def _scope(mesh: Mesh) -> Config:
    """Ask for the scope, a word of its own in the token's list, and for a tenant to count."""
    jwt = mesh.edge.jwt
    claims = {"scope": rf"(.* )?{jwt.scope}( .*)?", jwt.tenant_claim: ".+"}
    has_both = [
        {
            "sourced_metadata": {
                "metadata_matcher": {
                    "filter": _JWT_FILTER,
                    "path": [{"key": "jwt_payload"}, {"key": claim}],
                    "value": {"string_match": {"safe_regex": {"regex": regex}}},
                }
            }
        }
        for claim, regex in claims.items()
    ]
    served = [mesh.services[name].prefix for name in mesh.edge.serves]
    return filter_of(
        "rbac",
        "RBAC",
        rules={
            "action": "ALLOW",
            "policies": {
                "health": {
                    "permissions": [{"url_path": {"path": {"prefix": HEALTH_PREFIX}}}],
                    "principals": [{"any": True}],
                },
                "callers": {
                    "permissions": [{"url_path": {"path": {"prefix": path}}} for path in served],
                    "principals": [{"and_ids": {"ids": has_both}}],
                },
            },
        },
    )


def rate_limits(mesh: Mesh) -> Config:
    """Limit all callers together, and each tenant; who is over is told to come back."""

    def bucket(count: int) -> Config:
        return {"max_tokens": count, "tokens_per_fill": count, "fill_interval": "1s"}

    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return filter_of(
        "local_ratelimit",
        "LocalRateLimit",
        stat_prefix="edge",
        token_bucket=bucket(mesh.edge.requests_per_second),
        filter_enabled=always,
        filter_enforced=always,
        rate_limited_as_resource_exhausted=True,
        enable_x_ratelimit_headers="DRAFT_VERSION_03",
        response_headers_to_add=[{"header": {"key": "retry-after", "value": "1"}}],
        rate_limits=[
            {
                "actions": [
                    {"request_headers": {"header_name": TENANT_HEADER, "descriptor_key": "tenant"}}
                ]
            }
        ],
        descriptors=[
            {
                "entries": [{"key": "tenant"}],
                "token_bucket": bucket(mesh.edge.requests_per_second_of_a_tenant),
            }
        ],
    )


def _json_errors() -> Config:
    """Say what Envoy itself refuses as a problem in JSON; gRPC callers get a status."""
    problem = {
        "json_format": {
            "type": "about:blank",
            "status": "%RESPONSE_CODE%",
            "title": "%RESPONSE_CODE_DETAILS%",
            "detail": "%LOCAL_REPLY_BODY%",
            "request_id": "%REQ(X-REQUEST-ID)%",
        },
        "content_type": "application/problem+json",
    }
    return {
        "mappers": [
            {
                "filter": without_header("content-type", "application/grpc"),
                "body_format_override": problem,
            }
        ]
    }
