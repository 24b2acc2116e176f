"""Routes: the service of each request, its timeout, and its retries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vtryon_mesh.description import CONTENT_HEADER, HEALTH_CHECK, HTTP_HEALTH, Mesh, MeshService
from vtryon_mesh.envoy.pieces import TYPES, Address, Config, seconds, typed

BUFFER = "envoy.filters.http.buffer"
_KIB = 1024
# Safe for every request: nothing of it has reached a service.
UNSENT = "connect-failure,refused-stream,reset-before-request"


@dataclass(frozen=True, slots=True)
class Canary:
    """Replicas of a new version, and which share of a service's calls they get."""

    percent: int
    addresses: tuple[Address, ...]


def canary_of(cluster: str) -> str:
    """Name the cluster of a service's canary."""
    return f"{cluster}-canary"


def service_routes(
    mesh: Mesh,
    service: MeshService,
    cluster: str,
    *,
    retries: bool,
    canary: Canary | None = None,
    buffered_kib: int = 0,
) -> list[Config]:
    """Create the routes of a service, including those to its private methods.

    Deadlines are enforced by clients and services, which report them properly; Envoy only ends
    calls that exceed the longest call.

    Args:
        mesh: the description.
        service: the service that is called.
        cluster: the destination.
        retries: retry requests that have not reached a service, on another replica if there is
            one. Only the pipeline knows which further calls can be retried.
        canary: replicas that get a share of the calls.
        buffered_kib: bodies of HTTP requests up to this size are buffered first.
    """
    action = _action(mesh, service, cluster, canary)
    if service.http is not None:
        return list(_http_routes(service.http, action, retries=retries, buffered_kib=buffered_kib))
    if retries:
        action["retry_policy"] = _retries(UNSENT, 2)
    return [{"match": {"prefix": prefix}, "route": action} for prefix in service.prefixes]


def _action(mesh: Mesh, service: MeshService, cluster: str, canary: Canary | None) -> Config:
    target: Config = {"cluster": cluster}
    if canary is not None:
        shares = {cluster: 100 - canary.percent, canary_of(cluster): canary.percent}
        weights = [{"name": name, "weight": share} for name, share in shares.items()]
        target = {"weighted_clusters": {"clusters": weights}}
    longest = {"max_stream_duration": seconds(mesh.longest_call)}
    action: Config = {**target, "timeout": "0s", "max_stream_duration": longest}
    if service.balance == "content":
        action["hash_policy"] = [{"header": {"header_name": CONTENT_HEADER}}]
    return action


def _http_routes(
    prefix: str, action: Config, *, retries: bool, buffered_kib: int
) -> Iterator[Config]:
    """Repeat reads that a closing connection has cut off; HTTP/1.1 servers close as they like."""
    count = 2 if retries else 1
    reads = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}
    yield {
        "match": {"prefix": prefix, "headers": [reads]},
        "route": {**action, "retry_policy": _retries(f"{UNSENT},reset", count)},
    }
    action = {**action, "retry_policy": _retries(UNSENT, count)}
    if buffered_kib:
        most = buffered_kib * _KIB
        small = {"name": "content-length", "range_match": {"start": 0, "end": most + 1}}
        yield {
            "match": {"prefix": prefix, "headers": [small]},
            "route": action,
            "typed_per_filter_config": {BUFFER: buffer_of(most)},
        }
    yield {"match": {"prefix": prefix}, "route": action}


def buffer_of(most: int) -> Config:
    """Read a request's body whole, up to so many bytes, before it is sent on."""
    kind = f"{TYPES}extensions.filters.http.buffer.v3.BufferPerRoute"
    return {"@type": kind, "buffer": {"max_request_bytes": most}}


def _retries(on: str, count: int) -> Config:
    elsewhere = typed(
        "envoy.retry_host_predicates.previous_hosts",
        "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
    )
    return {
        "retry_on": on,
        "num_retries": count,
        "retry_back_off": {"base_interval": "0.02s", "max_interval": "0.2s"},
        "retry_host_predicate": [elsewhere],
        "host_selection_retry_max_attempts": 3,
    }


def health_route(service: MeshService, cluster: str) -> Config:
    """Route health checks of a service; each gets one response, Watch is not served."""
    path = HTTP_HEALTH if service.grpc is None else HEALTH_CHECK
    return {"match": {"path": path}, "route": {"cluster": cluster, "timeout": "5s"}}
