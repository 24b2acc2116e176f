"""Parts that both configurations have, as Envoy reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtryon_mesh.description import HEALTH_PREFIX, HTTP_HEALTH

Config = dict[str, Any]
TYPES = "type.googleapis.com/envoy."
MIB = 1024 * 1024
ADMIN = "admin"
_MANAGER = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


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


# A tenant's name is up to 255 characters, which takes a program longer than RE2's default.
_RUNTIME = {"re2": {"max_program_size": {"error_level": 2000}}}


def bootstrap(
    name: str,
    admin: Address,
    listeners: Sequence[Config],
    clusters: Sequence[Config],
    *,
    connections: int = 5000,
    heap_mib: int | None = None,
) -> Config:
    """Put a whole configuration together; its admin interface is to be on the loopback address.

    Args:
        name: of the Envoy.
        admin: where its own interface is.
        listeners: where it listens.
        clusters: where requests go.
        connections: callers' connections at once.
        heap_mib: memory that its load is kept below; None for no limit.
    """
    monitor = typed(
        "envoy.resource_monitors.global_downstream_max_connections",
        "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        max_active_downstream_connections=connections,
    )
    overload: Config = {"resource_monitors": [monitor]}
    if heap_mib is not None:
        overload = {
            "refresh_interval": "0.25s",
            "resource_monitors": [monitor, _heap(heap_mib)],
            "actions": _actions(),
        }
    return {
        "node": {"id": name, "cluster": name},
        "admin": {"address": admin.config},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": _RUNTIME}]},
        "overload_manager": overload,
        "static_resources": {"listeners": list(listeners), "clusters": list(clusters)},
    }


_HEAP = "envoy.resource_monitors.fixed_heap"


def _heap(mib: int) -> Config:
    kind = "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig"
    return typed(_HEAP, kind, max_heap_size_bytes=mib * MIB)


def _actions() -> list[Config]:
    """Take less and less as memory runs out: first patience, then connections and requests."""
    timers = [
        {"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": "2s"},
        {"timer": "TRANSPORT_SOCKET_CONNECT", "min_timeout": "1s"},
    ]
    sooner = {
        "name": "envoy.overload_actions.reduce_timeouts",
        "triggers": [
            {"name": _HEAP, "scaled": {"scaling_threshold": 0.8, "saturation_threshold": 0.95}}
        ],
        "typed_config": {
            "@type": f"{TYPES}config.overload.v3.ScaleTimersOverloadActionConfig",
            "timer_scale_factors": timers,
        },
    }
    full = [
        {
            "name": f"envoy.overload_actions.{action}",
            "triggers": [{"name": _HEAP, "threshold": {"value": 0.95}}],
        }
        for action in ("stop_accepting_connections", "stop_accepting_requests")
    ]
    return [sooner, *full]


def listener(
    name: str,
    address: Address,
    manager: Config,
    transport_socket: Config | None = None,
    *,
    handshake: float = 5,
) -> Config:
    """Create an HTTP listener; slower TLS handshakes than the timeout are aborted."""
    chain: Config = {"filters": [manager]}
    if transport_socket is not None:
        chain["transport_socket"] = transport_socket
        chain["transport_socket_connect_timeout"] = seconds(handshake)
    return {
        "name": name,
        "address": address.config,
        "per_connection_buffer_limit_bytes": MIB,
        "filter_chains": [chain],
    }


def connection_manager(
    name: str,
    hosts: Sequence[Config],
    filters: Sequence[Config],
    *,
    access_log: Path | None,
    otlp: bool,
    streams: int = 1000,
    idle: float | None = None,
    **config: Any,
) -> Config:
    """Manage the connections of a listener: its hosts and filters, logs and traces.

    Args:
        name: of its figures.
        hosts: virtual hosts.
        filters: before those that every Envoy has.
        access_log: where each request is written down.
        otlp: whether spans are sent.
        streams: requests at once on a connection.
        idle: seconds that a connection without a request is kept.
        config: further fields.
    """
    if access_log is not None:
        config["access_log"] = [_access_log(access_log)]
    if otlp:
        config["tracing"] = _tracing(name)
    return typed(
        "envoy.filters.network.http_connection_manager",
        _MANAGER,
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
            "max_concurrent_streams": streams,
            "initial_stream_window_size": MIB,
            "initial_connection_window_size": 4 * MIB,
            "connection_keepalive": {"interval": "10s", "timeout": "5s"},
        },
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        common_http_protocol_options={
            "headers_with_underscores_action": "REJECT_REQUEST",
            **({} if idle is None else {"idle_timeout": seconds(idle)}),
        },
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
        route_config={
            "name": name,
            "virtual_hosts": list(hosts),
            "ignore_port_in_host_matching": True,
        },
        **config,
    )


def metrics_listener(address: Address) -> Config:
    """Let Prometheus ask for figures, and nothing else of the admin interface."""
    route = {
        "match": {"path": "/stats/prometheus"},
        "route": {"cluster": ADMIN},
    }
    manager = typed(
        "envoy.filters.network.http_connection_manager",
        _MANAGER,
        stat_prefix="metrics",
        route_config={"name": "metrics", "virtual_hosts": [virtual_host([route])]},
        http_filters=[filter_of("router", "Router")],
    )
    return listener("metrics", address, manager)


def virtual_host(
    routes: Sequence[Config], name: str = "all", domains: Sequence[str] = ("*",), **config: Any
) -> Config:
    """Serve routes under some host names, by default under any."""
    return {
        "name": name,
        "domains": list(domains),
        "include_request_attempt_count": True,
        "routes": list(routes),
        **config,
    }


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
    """Match requests whose header does not have this prefix, for logs and replies."""
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
