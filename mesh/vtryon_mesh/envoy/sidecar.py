"""The Envoy sidecar of a service's replica: inbound from the mesh, outbound to other services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtryon_mesh.description import Mesh
from vtryon_mesh.envoy.pieces import (
    ADMIN,
    Address,
    Config,
    bootstrap,
    connection_manager,
    filter_of,
    listener,
    metrics_listener,
    virtual_host,
)
from vtryon_mesh.envoy.routes import Canary, canary_of, health_route, service_routes
from vtryon_mesh.envoy.tls import EnvoyCertificate, client_tls, server_tls
from vtryon_mesh.envoy.upstreams import breakers, cluster, otlp_cluster, upstream


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Addresses of a sidecar and of its environment.

    Attributes:
        application: loopback address of the service itself.
        inbound: address at which the mesh reaches the service.
        outbound: addresses at which the service reaches each of its callees.
        callees: the `inbound` of every replica of each; canaries: those of the canary replicas.
        zone: its zone, if calls are balanced by zone.
        metrics: address for Prometheus, if it can't reach the admin interface.
    """

    service: str
    admin: Address
    application: Address
    inbound: Address
    outbound: Mapping[str, Address]
    callees: Mapping[str, Sequence[Address]]
    certificates: Path
    canaries: Mapping[str, Canary] = field(default_factory=dict)
    zone: str = ""
    access_log: Path | None = None
    otlp: Address | None = None
    metrics: Address | None = None


def render_sidecar(mesh: Mesh, given: Sidecar) -> Config:
    """Render a sidecar that admits only the service's callers, to the service's own methods."""
    name, service = given.service, mesh.services[given.service]
    identity = EnvoyCertificate(name, given.certificates)
    log, traced = given.access_log, given.otlp is not None
    accepted = [mesh.identity(caller) for caller in mesh.identities]
    inbound = connection_manager(
        f"{name}-in",
        [
            virtual_host(
                [
                    *service_routes(mesh, service, "application", retries=False),
                    health_route(service, "application"),
                ]
            )
        ],
        [_callers_alone(mesh, name)],
        codec_type="HTTP2",
        forward_client_cert_details="SANITIZE_SET",
        set_current_client_cert_details={"uri": True},
        access_log=log,
        otlp=traced,
    )
    listeners = [listener("in", given.inbound, inbound, server_tls(identity, accepted))]
    http1 = service.http is not None
    application = upstream("application", [given.application], http1=http1)
    clusters = [{**application, "circuit_breakers": breakers(mesh.open_calls, http1=http1)}]
    for callee, address in given.outbound.items():
        other, canary = mesh.services[callee], given.canaries.get(callee)
        outbound = connection_manager(
            f"{name}-out",
            [
                virtual_host(
                    [
                        *service_routes(mesh, other, callee, retries=True, canary=canary),
                        health_route(other, callee),
                    ]
                )
            ],
            [],
            codec_type="HTTP2",
            access_log=log,
            otlp=traced,
        )
        tls = client_tls(identity, mesh.identity(callee))
        listeners.append(listener(f"out-{callee}", address, outbound))
        clusters.append(cluster(mesh, callee, other, given.callees[callee], tls, zone=given.zone))
        if canary is not None:
            clusters.append(cluster(mesh, canary_of(callee), other, canary.addresses, tls))
    if given.metrics is not None:
        listeners.append(metrics_listener(given.metrics))
        clusters.append(upstream(ADMIN, [given.admin], http1=True))
    if given.otlp is not None:
        clusters.append(otlp_cluster(given.otlp))
    return bootstrap(name, given.admin, listeners, clusters)


def _callers_alone(mesh: Mesh, name: str) -> Config:
    """Allow the service's methods and its health checks to its callers; deny the rest."""

    def principal(caller: str) -> Config:
        return {"authenticated": {"principal_name": {"exact": mesh.identity(caller)}}}

    policies = {
        rule: {
            "permissions": [{"url_path": {"path": {"prefix": path}}} for path in paths],
            "principals": [principal(caller) for caller in callers],
        }
        for rule, (paths, callers) in mesh.services[name].allowed.items()
    }
    return filter_of("rbac", "RBAC", rules={"action": "ALLOW", "policies": policies})
