"""The same policy for Istio: manifests for sidecars, or for ambient with a waypoint.

Sources of the fields: Istio 1.24's and Gateway API 1.2's custom resources.
"""

from __future__ import annotations

from typing import Any, Literal

from vtryon_mesh.description import CONTENT_HEADER, EDGE, HEALTH_PREFIX, TENANT_HEADER, Mesh
from vtryon_mesh.envoy.access import new_connections, rate_limits, tenant_names
from vtryon_mesh.envoy.pieces import TYPES, seconds
from vtryon_mesh.envoy.routes import UNSENT

Manifest = dict[str, Any]
Mode = Literal["sidecar", "ambient"]
_WAYPOINT = "waypoint"
_MANAGER = "envoy.filters.network.http_connection_manager"
_MANAGER_TYPE = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_NEW, _OLD = "canary", "stable"


def render_istio(
    mesh: Mesh, mode: Mode, *, trust_domain: str = "cluster.local"
) -> dict[str, list[Manifest]]:
    """Render manifests, by file name. The services themselves are the chart's.

    Deny is the default; each service lets in its callers alone, to its own methods. No stream is
    repeated by the mesh once it has reached a service.
    """
    files = {
        "namespace.yaml": [_namespace(mesh, mode)],
        "authentication.yaml": [_strict(mesh)],
        "authorization.yaml": [_deny(mesh), *_allowed(mesh, mode, trust_domain)],
        "gateway.yaml": [*_gateway(mesh), *_callers(mesh)],
        "traffic.yaml": _traffic(mesh),
        "telemetry.yaml": [_telemetry(mesh)],
    }
    if mode == "ambient":
        files["waypoint.yaml"] = [_waypoint(mesh)]
    return files


def _manifest(
    api: str, kind: str, name: str, mesh: Mesh, spec: Manifest, **metadata: Any
) -> Manifest:
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": name, "namespace": mesh.namespace, **metadata},
        "spec": spec,
    }


def _namespace(mesh: Mesh, mode: Mode) -> Manifest:
    labels = {"istio-injection": "enabled"}
    if mode == "ambient":
        labels = {"istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": _WAYPOINT}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": mesh.namespace, "labels": labels},
    }


def _strict(mesh: Mesh) -> Manifest:
    spec = {"mtls": {"mode": "STRICT"}}
    return _manifest("security.istio.io/v1", "PeerAuthentication", "default", mesh, spec)


def _deny(mesh: Mesh) -> Manifest:
    """An empty policy: nothing is allowed that no other policy allows."""
    return _manifest("security.istio.io/v1", "AuthorizationPolicy", "deny-by-default", mesh, {})


def _allowed(mesh: Mesh, mode: Mode, trust_domain: str) -> list[Manifest]:
    policies = []
    for name, service in mesh.services.items():

        def principal(caller: str) -> str:
            return f"{trust_domain}/ns/{mesh.namespace}/sa/{_account(caller)}"

        where: Manifest = {"selector": {"matchLabels": _labels(name)}}
        if mode == "ambient":
            # Paths are read by the waypoint; the pod itself lets in the waypoint alone.
            where = {"targetRefs": [{"group": "", "kind": "Service", "name": name}]}
            source = {"principals": [f"{trust_domain}/ns/{mesh.namespace}/sa/{_WAYPOINT}"]}
            policies.append(
                _policy(
                    mesh,
                    f"{name}-by-waypoint",
                    {"selector": {"matchLabels": _labels(name)}},
                    {"from": [{"source": source}]},
                )
            )
        for title, (paths, callers) in service.allowed.items():
            rule = {
                "from": [{"source": {"principals": [principal(caller) for caller in callers]}}],
                "to": [{"operation": {"paths": [f"{path}*" for path in paths]}}],
            }
            policies.append(_policy(mesh, f"{name}-{title}", where, rule))
    return policies


def _policy(mesh: Mesh, name: str, where: Manifest, rule: Manifest) -> Manifest:
    spec = {**where, "action": "ALLOW", "rules": [rule]}
    return _manifest("security.istio.io/v1", "AuthorizationPolicy", name, mesh, spec)


def _gateway(mesh: Mesh) -> list[Manifest]:
    """The edge, by the Gateway API; Istio makes its deployment and its account."""
    tls = {"mode": "Terminate", "certificateRefs": [{"kind": "Secret", "name": "vtryon-edge-tls"}]}
    listener = {
        "name": "https",
        "port": 443,
        "protocol": "HTTPS",
        "tls": tls,
        "allowedRoutes": {"namespaces": {"from": "Same"}},
    }
    gateway = {"gatewayClassName": "istio", "listeners": [listener]}
    routes = []
    for name in mesh.edge.serves:
        service = mesh.services[name]
        kind: str = "HTTPRoute"
        match: Manifest = {"path": {"type": "PathPrefix", "value": service.http}}
        if service.grpc:
            kind, match = "GRPCRoute", {"method": {"type": "Exact", "service": service.grpc}}
        rule = {
            "matches": [match],
            "backendRefs": [{"name": name, "port": service.port}],
        }
        spec = {"parentRefs": [{"name": EDGE}], "rules": [rule]}
        routes.append(_manifest("gateway.networking.k8s.io/v1", kind, name, mesh, spec))
    return [
        _manifest("gateway.networking.k8s.io/v1", "Gateway", EDGE, mesh, gateway),
        *routes,
    ]


def _callers(mesh: Mesh) -> list[Manifest]:
    """Who may come in at the gateway: tokens, their scope, and how often."""
    jwt = mesh.edge.jwt
    at_gateway = {
        "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": EDGE}]
    }
    rule = {
        "issuer": jwt.issuer,
        "audiences": [jwt.audience],
        "jwksUri": jwt.jwks_uri or f"{jwt.issuer}/.well-known/jwks.json",
        "forwardOriginalToken": False,
        "outputClaimToHeaders": [{"header": TENANT_HEADER, "claim": jwt.tenant_claim}],
    }
    authentication = {**at_gateway, "jwtRules": [rule]}
    served = [f"{mesh.services[name].prefix}*" for name in mesh.edge.serves]
    allowed = {
        "from": [{"source": {"requestPrincipals": [f"{jwt.issuer}/*"]}}],
        "to": [{"operation": {"paths": served}}],
        "when": [
            {"key": "request.auth.claims[scope]", "values": [jwt.scope]},
            {"key": f"request.auth.claims[{jwt.tenant_claim}]", "values": ["*"]},
        ],
    }
    security = "security.istio.io/v1"
    return [
        _manifest(security, "RequestAuthentication", "callers", mesh, authentication),
        _policy(mesh, "callers", at_gateway, allowed),
        _rate_limit(mesh),
        _limits(mesh),
    ]


def _envoy_filter(mesh: Mesh, name: str, *patches: Manifest) -> Manifest:
    """Patch the gateway's Envoy where Istio has no resource for it."""
    selector = {"labels": {"gateway.networking.k8s.io/gateway-name": EDGE}}
    spec = {"workloadSelector": selector, "configPatches": list(patches)}
    return _manifest("networking.istio.io/v1alpha3", "EnvoyFilter", name, mesh, spec)


def _rate_limit(mesh: Mesh) -> Manifest:
    """Check tenants' names and count requests by Envoy's own filters, as at a local edge."""
    manager = {"name": _MANAGER, "subFilter": {"name": "envoy.filters.http.router"}}
    patches = [
        {
            "applyTo": "HTTP_FILTER",
            "match": {"context": "GATEWAY", "listener": {"filterChain": {"filter": manager}}},
            "patch": {"operation": "INSERT_BEFORE", "value": one},
        }
        for one in (tenant_names(), rate_limits(mesh))
    ]
    return _envoy_filter(mesh, "rate-limits", *patches)


def _limits(mesh: Mesh) -> Manifest:
    """Bound connections and the time for a request, as at a local edge."""
    limits = mesh.edge.limits
    manager = {
        "@type": TYPES + _MANAGER_TYPE,
        "max_request_headers_kb": limits.request_headers_kib,
        "request_headers_timeout": seconds(limits.request_headers),
        "request_timeout": seconds(limits.request),
        "common_http_protocol_options": {"idle_timeout": seconds(limits.idle)},
        "http2_protocol_options": {"max_concurrent_streams": limits.streams_per_connection},
    }
    at_manager = {"listener": {"filterChain": {"filter": {"name": _MANAGER}}}}
    handshake = {"transport_socket_connect_timeout": seconds(limits.handshake)}
    return _envoy_filter(
        mesh,
        "limits",
        _merged("NETWORK_FILTER", {"name": _MANAGER, "typed_config": manager}, **at_manager),
        _merged("FILTER_CHAIN", handshake),
        _merged("LISTENER", {"listener_filters": [new_connections(mesh)]}),
    )


def _merged(kind: str, value: Manifest, **match: Any) -> Manifest:
    return {
        "applyTo": kind,
        "match": {"context": "GATEWAY", **match},
        "patch": {"operation": "MERGE", "value": value},
    }


def _traffic(mesh: Mesh) -> list[Manifest]:
    manifests = []
    for name, service in mesh.services.items():
        # Within a zone as long as it has well replicas: tensors are large.
        balance: Manifest = {"simple": "LEAST_REQUEST", "localityLbSetting": {"enabled": True}}
        if service.balance == "content":
            balance = {"consistentHash": {"httpHeaderName": CONTENT_HEADER}}
        rule = {
            "host": name,
            "trafficPolicy": {
                "loadBalancer": balance,
                "connectionPool": {
                    "http": {
                        "http2MaxRequests": mesh.open_calls,
                        "http1MaxPendingRequests": mesh.open_calls,
                        "maxRetries": 3,
                    }
                },
                "outlierDetection": {
                    # What a service answers never counts, as at a local edge.
                    "splitExternalLocalOriginErrors": True,
                    "consecutiveLocalOriginFailures": 3,
                    "consecutiveGatewayErrors": 0,
                    "consecutive5xxErrors": 0,
                    "interval": "1s",
                    "baseEjectionTime": f"{mesh.ejection:g}s",
                    "maxEjectionPercent": 50,
                },
            },
            "subsets": [{"name": one, "labels": {"vtryon.io/track": one}} for one in (_OLD, _NEW)],
        }
        routes = [
            {"destination": {"host": name, "subset": _OLD}, "weight": 100},
            {"destination": {"host": name, "subset": _NEW}, "weight": 0},
        ]
        http = {
            "route": routes,
            "timeout": "0s",
            "retries": {"attempts": 2, "retryOn": UNSENT},
            # Copies for a new version, whose answers nobody reads; none until somebody asks.
            "mirror": {"host": name, "subset": _NEW},
            "mirrorPercentage": {"value": 0.0},
        }
        api = "networking.istio.io/v1"
        manifests.append(_manifest(api, "DestinationRule", name, mesh, rule))
        manifests.append(
            _manifest(api, "VirtualService", name, mesh, {"hosts": [name], "http": [http]})
        )
    return manifests


def _telemetry(mesh: Mesh) -> Manifest:
    quiet = {"expression": f"!request.url_path.startsWith('{HEALTH_PREFIX}')"}
    spec = {
        "tracing": [{"providers": [{"name": "otel"}], "randomSamplingPercentage": 10.0}],
        "accessLogging": [{"providers": [{"name": "envoy"}], "filter": quiet}],
        "metrics": [{"providers": [{"name": "prometheus"}]}],
    }
    return _manifest("telemetry.istio.io/v1", "Telemetry", "default", mesh, spec)


def _waypoint(mesh: Mesh) -> Manifest:
    spec = {
        "gatewayClassName": "istio-waypoint",
        "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
    }
    labels = {"istio.io/waypoint-for": "service"}
    return _manifest(
        "gateway.networking.k8s.io/v1", "Gateway", _WAYPOINT, mesh, spec, labels=labels
    )


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "vtryon", "app.kubernetes.io/component": name}


def _account(name: str) -> str:
    """Name a caller's service account; a gateway's is made by Istio."""
    return f"{EDGE}-istio" if name == EDGE else name
