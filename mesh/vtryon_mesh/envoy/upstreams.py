"""Where requests go: clusters, their health, their balance and their circuit breakers."""

from __future__ import annotations

from collections.abc import Sequence

from vtryon_mesh.description import HTTP_HEALTH, Mesh, MeshService
from vtryon_mesh.envoy.pieces import MIB, TYPES, Address, Config, seconds

_LEAST_CONNECTIONS = 100
# uvicorn closes an idle connection after 5 s; one that closes as a request is sent fails it.
_HTTP1_IDLE = "3s"
# Missed checks in a row: a busy replica answers late now and then. NOT_SERVING counts at once.
_MISSED_CHECKS = 3


def cluster(
    mesh: Mesh,
    name: str,
    service: MeshService,
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
    config |= {
        "lb_policy": "RING_HASH" if by_content else "LEAST_REQUEST",
        "health_checks": [_health_check(mesh, service, http1=plain)],
        "outlier_detection": _outlier_detection(mesh),
        "circuit_breakers": breakers(mesh.open_calls * len(addresses), http1=plain),
        # With no healthy replica left, all are tried: one that is slow is better than none.
        "common_lb_config": {"healthy_panic_threshold": {"value": 1}},
    }
    if zone:
        config["common_lb_config"]["locality_weighted_lb_config"] = {}
        config["load_assignment"]["endpoints"] = _by_zone(mesh, addresses, zone)
    if by_content:
        config["ring_hash_lb_config"] = {"minimum_ring_size": 1024}
    if transport_socket is not None:
        config["transport_socket"] = transport_socket
    return config


def breakers(requests: int, *, http1: bool = False) -> Config:
    """Limit the concurrent requests to a cluster; over HTTP/1.1 each uses a connection."""
    connections = max(_LEAST_CONNECTIONS, requests) if http1 else _LEAST_CONNECTIONS
    return {
        "thresholds": [
            {
                "max_connections": connections,
                "max_pending_requests": requests,
                "max_requests": requests,
                "retry_budget": {"budget_percent": {"value": 10}, "min_retry_concurrency": 3},
                "track_remaining": True,
            }
        ]
    }


def _health_check(mesh: Mesh, service: MeshService, *, http1: bool) -> Config:
    asked: Config = {"grpc_health_check": {"service_name": service.grpc}}
    if service.http is not None:
        codec = "HTTP1" if http1 else "HTTP2"
        asked = {"http_health_check": {"path": HTTP_HEALTH, "codec_client_type": codec}}
    return {
        "timeout": "1s",
        "interval": seconds(mesh.health_interval),
        "no_traffic_interval": seconds(mesh.health_interval),
        "unhealthy_threshold": _MISSED_CHECKS,
        "healthy_threshold": 1,
        **asked,
    }


def _outlier_detection(mesh: Mesh) -> Config:
    """Eject a replica for a while after consecutive connection failures or resets.

    Responses of a service never count: a client's own deadline or a request with failing content
    would eject healthy replicas for every client.
    """
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 3,
        "enforcing_consecutive_local_origin_failure": 100,
        "consecutive_5xx": 0,
        "enforcing_consecutive_5xx": 0,
        "consecutive_gateway_failure": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "interval": "1s",
        "base_ejection_time": seconds(mesh.ejection),
        "max_ejection_percent": 50,
    }


def upstream(name: str, addresses: Sequence[Address], *, http1: bool = False) -> Config:
    """Name the places that requests go to, as HTTP/2 or as HTTP/1.1."""
    numeric = all(address.host.replace(".", "").isdigit() for address in addresses)
    options = f"{TYPES.partition('/')[2]}extensions.upstreams.http.v3.HttpProtocolOptions"
    http2 = {
        "connection_keepalive": {"interval": "2.5s", "timeout": "2s"},
        "initial_stream_window_size": MIB,
        "initial_connection_window_size": 4 * MIB,
    }
    protocol: Config = {"explicit_http_config": {"http2_protocol_options": http2}}
    if http1:
        protocol = {
            "explicit_http_config": {"http_protocol_options": {}},
            "common_http_protocol_options": {"idle_timeout": _HTTP1_IDLE},
        }
    return {
        "name": name,
        "type": "STATIC" if numeric else "STRICT_DNS",
        **({} if numeric else {"dns_lookup_family": "V4_ONLY"}),
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": MIB,
        "typed_extension_protocol_options": {
            options: {"@type": f"type.googleapis.com/{options}", **protocol}
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
