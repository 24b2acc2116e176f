"""The Envoy at the edge: the protocols, names, connections and requests that it accepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtryon_mesh.description import EDGE, Mesh, MeshService
from vtryon_mesh.envoy.access import (
    Keys,
    authentication,
    health_rate_limit,
    jwks_cluster,
    new_connections,
    rate_limits,
    rules,
)
from vtryon_mesh.envoy.browsers import cors
from vtryon_mesh.envoy.pieces import (
    ADMIN,
    Address,
    Config,
    bootstrap,
    connection_manager,
    filter_of,
    listener,
    metrics_listener,
    seconds,
    virtual_host,
    without_header,
)
from vtryon_mesh.envoy.routes import BUFFER, buffer_of, health_route, service_routes
from vtryon_mesh.envoy.tls import EnvoyCertificate, caller_tls, client_tls
from vtryon_mesh.envoy.upstreams import breakers, cluster, otlp_cluster, upstream

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# A cluster of its own: what needs no token takes nothing of what callers need.
_HEALTH = "health"
_HEALTH_BYTES = 1024
_HEALTH_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class EdgePlace:
    """Addresses of the edge and of its environment.

    Attributes:
        services: addresses of every replica of each service: its sidecar, or the replica itself
            without sidecars. Services that are missing here are not exposed.
        certificates: of the mesh; None if services are reached without TLS.
        jwks: keys that sign accepted tokens; None accepts every client.
        metrics: address for Prometheus, if it can't reach the admin interface.
        server_certificate: name of `NAME.crt` and `NAME.key` for clients' TLS; None for none.
    """

    admin: Address
    listen: Address
    services: Mapping[str, Sequence[Address]]
    certificates: Path | None
    jwks: Keys | None
    server_certificate: EnvoyCertificate | None = None
    access_log: Path | None = None
    otlp: Address | None = None
    metrics: Address | None = None


def render_edge(mesh: Mesh, given: EdgePlace) -> Config:
    """Render the edge."""
    limits = mesh.edge.limits
    manager = connection_manager(
        EDGE,
        _hosts(mesh, given),
        _filters(mesh, given),
        access_log=given.access_log,
        otlp=given.otlp is not None,
        streams=limits.streams_per_connection,
        idle=limits.idle,
        codec_type="AUTO",
        use_remote_address=True,
        generate_request_id=True,
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        max_request_headers_kb=limits.request_headers_kib,
        local_reply_config=_json_errors(),
        request_headers_timeout=seconds(limits.request_headers),
        request_timeout=seconds(limits.request),
        server_header_transformation="PASS_THROUGH",
    )
    tls = None if given.server_certificate is None else caller_tls(given.server_certificate)
    edge = listener(EDGE, given.listen, manager, tls, handshake=limits.handshake)
    edge["listener_filters"] = [new_connections(mesh)]
    metrics = [] if given.metrics is None else [metrics_listener(given.metrics)]
    return bootstrap(
        EDGE,
        given.admin,
        [edge, *metrics],
        _clusters(mesh, given),
        connections=limits.connections,
        heap_mib=limits.heap_mib,
    )


def _served(mesh: Mesh, given: EdgePlace) -> dict[str, MeshService]:
    return {name: mesh.services[name] for name in mesh.edge.serves if name in given.services}


def _spokesman(served: Mapping[str, MeshService]) -> str | None:
    """Return the first gRPC service, whose health represents that of the mesh."""
    return next((name for name, one in served.items() if one.grpc), None)


def _filters(mesh: Mesh, given: EdgePlace) -> list[Config]:
    filters = [filter_of("cors", "Cors"), filter_of("grpc_web", "GrpcWeb")]
    if given.jwks is not None:
        filters += [authentication(mesh, given.jwks), rules(mesh)]
    # Off but for routes that turn it on; behind what refuses callers, who then cost no memory.
    buffering = filter_of("buffer", "Buffer", max_request_bytes=_HEALTH_BYTES)
    return [*filters, rate_limits(mesh), {**buffering, "disabled": True}]


def _hosts(mesh: Mesh, given: EdgePlace) -> list[Config]:
    """Serve the allowed host names; reject others with an explanation."""
    served = _served(mesh, given)
    routes = [
        route
        for name, one in served.items()
        for route in service_routes(
            mesh, one, name, retries=True, buffered_kib=mesh.edge.limits.buffered_kib
        )
    ]
    first = _spokesman(served)
    if first is not None:
        limited = {
            BUFFER: buffer_of(_HEALTH_BYTES),
            "envoy.filters.http.local_ratelimit": health_rate_limit(mesh),
        }
        health = health_route(served[first], _HEALTH)
        routes.append({**health, "typed_per_filter_config": limited})
    filters = {"envoy.filters.http.cors": cors(mesh)}
    names = mesh.edge.hosts if given.jwks is not None else (*_LOOPBACK, *mesh.edge.hosts)
    if not names:
        return [virtual_host(routes, typed_per_filter_config=filters)]
    refused = {
        "match": {"prefix": "/"},
        "direct_response": {
            "status": 421,
            "body": {
                "inline_string": "the edge is not known by this host name: "
                "use another one or add it to edge.hosts in mesh.yaml"
            },
        },
    }
    return [
        virtual_host(routes, "known", sorted(set(names)), typed_per_filter_config=filters),
        virtual_host([refused], "unknown"),
    ]


def _clusters(mesh: Mesh, given: EdgePlace) -> list[Config]:
    served = _served(mesh, given)

    def tls(name: str) -> Config | None:
        if given.certificates is None:
            return None
        return client_tls(EnvoyCertificate(EDGE, given.certificates), mesh.identity(name))

    clusters = [
        cluster(mesh, name, service, given.services[name], tls(name))
        for name, service in served.items()
    ]
    first = _spokesman(served)
    if first is not None:
        health = upstream(_HEALTH, given.services[first])
        socket = tls(first)
        clusters.append(
            {
                **health,
                "circuit_breakers": breakers(_HEALTH_AT_ONCE),
                **({} if socket is None else {"transport_socket": socket}),
            }
        )
    if given.jwks is not None:
        clusters += jwks_cluster(given.jwks)
    if given.metrics is not None:
        clusters.append(upstream(ADMIN, [given.admin], http1=True))
    if given.otlp is not None:
        clusters.append(otlp_cluster(given.otlp))
    return clusters


def _json_errors() -> Config:
    """Format Envoy's own rejections as a JSON problem; gRPC clients get a status."""
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
