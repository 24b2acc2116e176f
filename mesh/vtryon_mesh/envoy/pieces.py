"""Parts that both configurations have, as Envoy reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtryon_mesh.description import CONTENT_HEADER, HEALTH_PREFIX, HTTP_HEALTH, Mesh, Service

Config = dict[str, Any]
TYPES = "type.googleapis.com/envoy."
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port; names are looked up. Where it matters, the zone that it is in."""

    host: str
    port: int
    zone: str = ""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def config(self) -> Config:
        """As Envoy writes it."""
        return {"socket_address": {"address": self.host, "port_value": self.port}}


def typed(name: str, kind: str, **config: Any) -> Config:
    """Name an extension, and configure it."""
    return {"name": name, "typed_config": {"@type": TYPES + kind, **config}}


def filter_of(name: str, kind: str, **config: Any) -> Config:
    """Make an HTTP filter."""
    return typed(
        f"envoy.filters.http.{name}", f"extensions.filters.http.{name}.v3.{kind}", **config
    )


def seconds(value: float) -> str:
    """Write a duration."""
    return f"{value:g}s"


def bootstrap(
    name: str, admin: Address, listeners: Sequence[Config], clusters: Sequence[Config]
) -> Config:
    """Put a whole configuration together; its admin interface is to be on the loopback address."""
    connections = typed(
        "envoy.resource_monitors.global_downstream_max_connections",
        "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        max_active_downstream_connections=5000,
    )
    return {
        "node": {"id": name, "cluster": name},
        "admin": {"address": admin.config},
        "overload_manager": {"resource_monitors": [connections]},
        "static_resources": {"listeners": list(listeners), "clusters": list(clusters)},
    }


def listener(
    name: str, address: Address, manager: Config, transport_socket: Config | None = None
) -> Config:
    """Listen for HTTP."""
    chain: Config = {"filters": [manager]}
    if transport_socket is not None:
        chain["transport_socket"] = transport_socket
    return {
        "name": name,
        "address": address.config,
        "per_connection_buffer_limit_bytes": _MIB,
        "filter_chains": [chain],
    }


def connection_manager(
    name: str,
    routes: Sequence[Config],
    filters: Sequence[Config],
    *,
    access_log: Path | None,
    otlp: bool,
    **config: Any,
) -> Config:
    """Manage the connections of a listener: its routes and filters, logs and traces."""
    if access_log is not None:
        config["access_log"] = [_access_log(access_log)]
    if otlp:
        config["tracing"] = _tracing(name)
    return typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        # Silent streams are the business of deadlines and of keepalive.
        stream_idle_timeout="0s",
        # Callers name their requests as they like; whether one is traced, traceparent says alone.
        request_id_extension={
            "typed_config": {
                "@type": TYPES + "extensions.request_id.uuid.v3.UuidRequestIdConfig",
                "pack_trace_reason": False,
                "use_request_id_for_trace_sampling": False,
            }
        },
        http2_protocol_options={
            "max_concurrent_streams": 1000,
            "initial_stream_window_size": _MIB,
            "initial_connection_window_size": 4 * _MIB,
            "connection_keepalive": {"interval": "10s", "timeout": "5s"},
        },
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        common_http_protocol_options={"headers_with_underscores_action": "REJECT_REQUEST"},
        http_filters=[
            *filters,
            filter_of(
                "grpc_stats",
                "FilterConfig",
                stats_for_all_methods=True,
                enable_upstream_stats=True,
                replace_dots_in_grpc_service_name=True,
            ),
            filter_of("router", "Router"),
        ],
        **{"route_config": {"name": name, "virtual_hosts": [virtual_host(routes)]}, **config},
    )


def virtual_host(routes: Sequence[Config], **config: Any) -> Config:
    """Take any host name."""
    return {
        "name": "all",
        "domains": ["*"],
        "include_request_attempt_count": True,
        "routes": list(routes),
        **config,
    }


@dataclass(frozen=True, slots=True)
class Canary:
    """Replicas of a new version, and which share of a service's calls they get."""

    percent: int
    addresses: tuple[Address, ...]


def canary_of(cluster: str) -> str:
    """Name the cluster of a service's canary."""
    return f"{cluster}-canary"


def service_routes(
    mesh: Mesh, service: Service, cluster: str, *, tried_again: bool, canary: Canary | None = None
) -> list[Config]:
    """Route a service's calls, those that not everybody may make among them."""
    public = service_route(mesh, service, cluster, tried_again=tried_again, canary=canary)
    return [{**public, "match": {"prefix": prefix}} for prefix in service.prefixes]


def service_route(
    mesh: Mesh, service: Service, cluster: str, *, tried_again: bool, canary: Canary | None = None
) -> Config:
    """Route a service's calls: deadlines are the caller's, up to the longest.

    An attempt is repeated only where no byte of it has reached a service: the pipeline alone knows
    what else can be.
    """
    target: Config = {"cluster": cluster}
    if canary is not None:
        shares = {cluster: 100 - canary.percent, canary_of(cluster): canary.percent}
        weights = [{"name": name, "weight": share} for name, share in shares.items()]
        target = {"weighted_clusters": {"clusters": weights}}
    action: Config = {
        **target,
        "timeout": "0s",
        "max_stream_duration": {
            "max_stream_duration": seconds(mesh.longest_call),
            "grpc_timeout_header_max": seconds(mesh.longest_call),
        },
    }
    if service.balance == "content":
        action["hash_policy"] = [{"header": {"header_name": CONTENT_HEADER}}]
    if tried_again:
        action["retry_policy"] = {
            "retry_on": "connect-failure,refused-stream",
            "num_retries": 2,
            "retry_back_off": {"base_interval": "0.02s", "max_interval": "0.2s"},
            "retry_host_predicate": [
                typed(
                    "envoy.retry_host_predicates.previous_hosts",
                    "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                )
            ],
            "host_selection_retry_max_attempts": 3,
        }
    return {"match": {"prefix": service.prefix}, "route": action}


def health_route(service: Service, cluster: str) -> Config:
    """Route questions for a service's health."""
    return {
        "match": {"prefix": service.health},
        "route": {"cluster": cluster, "timeout": "5s"},
    }


def cluster(
    mesh: Mesh,
    name: str,
    service: Service,
    addresses: Sequence[Address],
    transport_socket: Config | None = None,
    *,
    zone: str = "",
) -> Config:
    """Balance between the replicas of a service, and leave out those that are not well.

    A caller that is in a zone keeps most of its calls there.
    """
    by_content = service.balance == "content"
    # Between Envoys all is HTTP/2; a service of REST's itself is not.
    plain = service.http is not None and transport_socket is None
    config = upstream(name, addresses, http1=plain)
    asked: Config = {"grpc_health_check": {"service_name": service.grpc}}
    if service.http is not None:
        codec = "HTTP1" if plain else "HTTP2"
        asked = {"http_health_check": {"path": HTTP_HEALTH, "codec_client_type": codec}}
    config |= {
        "lb_policy": "RING_HASH" if by_content else "LEAST_REQUEST",
        "health_checks": [
            {
                "timeout": "1s",
                "interval": seconds(mesh.health_interval),
                "no_traffic_interval": seconds(mesh.health_interval),
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                **asked,
            }
        ],
        # A replica that fails in a row is left alone for a while; refusals are no failures.
        "outlier_detection": {
            "consecutive_5xx": 0,
            "enforcing_consecutive_5xx": 0,
            "consecutive_gateway_failure": 5,
            "enforcing_consecutive_gateway_failure": 100,
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 3,
            "interval": "1s",
            "base_ejection_time": seconds(mesh.ejection),
            "max_ejection_percent": 50,
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 100,
                    "max_pending_requests": service.max_requests * len(addresses),
                    "max_requests": service.max_requests * len(addresses),
                    "retry_budget": {"budget_percent": {"value": 10}, "min_retry_concurrency": 3},
                    "track_remaining": True,
                }
            ]
        },
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }
    if zone:
        config["common_lb_config"]["locality_weighted_lb_config"] = {}
        config["load_assignment"]["endpoints"] = _by_zone(mesh, addresses, zone)
    if by_content:
        config["ring_hash_lb_config"] = {"minimum_ring_size": 1024}
    if transport_socket is not None:
        config["transport_socket"] = transport_socket
    return config


def upstream(name: str, addresses: Sequence[Address], *, http1: bool = False) -> Config:
    """Name the places that requests go to, as HTTP/2 or as HTTP/1.1."""
    numeric = all(address.host.replace(".", "").isdigit() for address in addresses)
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    http2 = {
        "connection_keepalive": {"interval": "2.5s", "timeout": "2s"},
        "initial_stream_window_size": _MIB,
        "initial_connection_window_size": 4 * _MIB,
    }
    protocol: Config = {"http_protocol_options": {}}
    if not http1:
        protocol = {"http2_protocol_options": http2}
    return {
        "name": name,
        "type": "STATIC" if numeric else "STRICT_DNS",
        **({} if numeric else {"dns_lookup_family": "V4_ONLY"}),
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": _MIB,
        "typed_extension_protocol_options": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": protocol,
            }
        },
        "load_assignment": {"cluster_name": name, "endpoints": [_endpoints(addresses)]},
    }


def _endpoints(addresses: Sequence[Address]) -> Config:
    return {"lb_endpoints": [{"endpoint": {"address": one.config}} for one in addresses]}


def _by_zone(mesh: Mesh, addresses: Sequence[Address], own: str) -> list[Config]:
    """Group replicas by zone, and give each zone its share of a caller's calls."""
    zones = sorted({one.zone for one in addresses})
    others = max(1, (100 - mesh.own_zone) // max(1, len(set(zones) - {own})))
    return [
        {
            "locality": {"zone": zone},
            "load_balancing_weight": mesh.own_zone if zone == own else others,
            **_endpoints([one for one in addresses if one.zone == zone]),
        }
        for zone in zones
    ]


def otlp_cluster(address: Address) -> Config:
    """Where spans go."""
    return upstream("otlp", [address])


def _tracing(name: str) -> Config:
    return {
        "random_sampling": {"value": 100},
        "spawn_upstream_span": True,
        "provider": typed(
            "envoy.tracers.opentelemetry",
            "config.trace.v3.OpenTelemetryConfig",
            service_name=f"envoy-{name}",
            grpc_service={"envoy_grpc": {"cluster_name": "otlp"}, "timeout": "1s"},
        ),
    }


def without_header(name: str, prefix: str) -> Config:
    """Filter what a log or a reply is for: requests whose header does not begin so."""
    matcher = {
        "name": name,
        "string_match": {"prefix": prefix},
        "invert_match": True,
        "treat_missing_header_as_empty": True,
    }
    return {"header_filter": {"header": matcher}}


def _access_log(path: Path) -> Config:
    log = typed(
        "envoy.access_loggers.file",
        "extensions.access_loggers.file.v3.FileAccessLog",
        path=str(path),
        log_format={
            "json_format": {
                "time": "%START_TIME%",
                "method": "%REQ(:METHOD)%",
                "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
                "status": "%RESPONSE_CODE%",
                "grpc_status": "%GRPC_STATUS(SNAKE_STRING)%",
                "flags": "%RESPONSE_FLAGS%",
                "details": "%RESPONSE_CODE_DETAILS%",
                "duration_ms": "%DURATION%",
                "bytes_received": "%BYTES_RECEIVED%",
                "bytes_sent": "%BYTES_SENT%",
                "upstream": "%UPSTREAM_HOST%",
                "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
                "caller": "%DOWNSTREAM_PEER_URI_SAN%",
                "request_id": "%REQ(X-REQUEST-ID)%",
                "trace_id": "%TRACE_ID%",
            }
        },
    )
    quiet = [without_header(":path", path) for path in (HEALTH_PREFIX, HTTP_HEALTH)]
    return {**log, "filter": {"and_filter": {"filters": quiet}}}
