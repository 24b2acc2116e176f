"""Access at the edge: tokens, their claims, and rate limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vtryon.wire.headers import TENANT_NAME
from vtryon_mesh.description import HEALTH_CHECK, HEALTH_PREFIX, TENANT_HEADER, Mesh
from vtryon_mesh.envoy.pieces import TYPES, Address, Config, filter_of, seconds, typed
from vtryon_mesh.envoy.upstreams import upstream

_JWT_FILTER = "envoy.filters.http.jwt_authn"
_JWKS = "jwks"


@dataclass(frozen=True, slots=True)
class RemoteKeys:
    """Keys that an identity provider publishes.

    Attributes:
        uri: where they are, by http or https.
        cache: seconds between two fetches. Keys that were fetched stay in use while the provider
            is away.
        retry: seconds from a failed fetch to the next.
        authorities: PEM file of who may sign the provider's certificate.
    """

    uri: str
    cache: float = 300
    retry: float = 1
    authorities: Path = Path("/etc/ssl/certs/ca-certificates.crt")

    @property
    def host(self) -> str:
        """The provider's host name."""
        return urlsplit(self.uri).hostname or ""

    @property
    def address(self) -> Address:
        """Where the provider listens."""
        parts = urlsplit(self.uri)
        return Address(self.host, parts.port or (443 if parts.scheme == "https" else 80))


# JSON, or a file of JSON, or an identity provider's.
Keys = str | Path | RemoteKeys


def authentication(mesh: Mesh, keys: Keys) -> Config:
    """Ask for a token, but for health checks and for browsers' preflight requests."""
    jwt = mesh.edge.jwt
    provider = {
        "issuer": jwt.issuer,
        "audiences": [jwt.audience],
        "require_expiration": True,
        "clock_skew_seconds": 30,
        "forward": False,
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "claim_to_headers": [{"header_name": TENANT_HEADER, "claim_name": jwt.tenant_claim}],
        "payload_in_metadata": "jwt_payload",
        "jwt_cache_config": {"jwt_cache_size": 1000},
        **_source(keys),
    }
    return filter_of(
        "jwt_authn",
        "JwtAuthentication",
        providers={"callers": provider},
        rules=[
            {"match": {"path": HEALTH_CHECK}},
            {"match": {"prefix": "/"}, "requires": {"provider_name": "callers"}},
        ],
        bypass_cors_preflight=True,
    )


def _source(keys: Keys) -> Config:
    if isinstance(keys, Path):
        return {"local_jwks": {"filename": str(keys)}}
    if isinstance(keys, str):
        return {"local_jwks": {"inline_string": keys}}
    # Fetched beside the requests: none waits for the provider, and keys do not run out with it.
    return {
        "remote_jwks": {
            "http_uri": {"uri": keys.uri, "cluster": _JWKS, "timeout": "5s"},
            "cache_duration": seconds(keys.cache),
            "async_fetch": {"failed_refetch_duration": seconds(keys.retry)},
        }
    }


def jwks_cluster(keys: Keys) -> list[Config]:
    """Give the cluster that keys are fetched from, if they are."""
    if not isinstance(keys, RemoteKeys):
        return []
    config = upstream(_JWKS, [keys.address], http1=True)
    if urlsplit(keys.uri).scheme == "https":
        names = [{"san_type": "DNS", "matcher": {"exact": keys.host}}]
        signed = {
            "trusted_ca": {"filename": str(keys.authorities)},
            "match_typed_subject_alt_names": names,
        }
        config["transport_socket"] = typed(
            "envoy.transport_sockets.tls",
            "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            sni=keys.host,
            common_tls_context={"validation_context": signed},
        )
    return [config]


def rules(mesh: Mesh) -> Config:
    """Ask for the scope, a word of its own in the token's list, and for a tenant's name.

    Names that some hop would trim, cut or misread are refused: two tenants would be one.
    """
    jwt = mesh.edge.jwt
    claims = {"scope": rf"(.* )?{jwt.scope}( .*)?", jwt.tenant_claim: TENANT_NAME}
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
    policies = {
        # Of the health service's methods the routes have one; what is not there is said to be so.
        "health": {
            "permissions": [{"url_path": {"path": {"prefix": HEALTH_PREFIX}}}],
            "principals": [{"any": True}],
        },
        "callers": {
            "permissions": [{"url_path": {"path": {"prefix": path}}} for path in served],
            "principals": [{"and_ids": {"ids": has_both}}],
        },
    }
    return filter_of("rbac", "RBAC", rules={"action": "ALLOW", "policies": policies})


def tenant_names() -> Config:
    """Check the tenant's name in the header that it was copied to, in an Istio gateway.

    The services reject names that are too long: RE2 does not accept that expression there.
    """
    characters = {"safe_regex": {"regex": "[!-~]([ -~]*[!-~])?"}}
    named = {"header": {"name": TENANT_HEADER, "string_match": characters}}
    policies = {"named": {"permissions": [{"any": True}], "principals": [named]}}
    return filter_of("rbac", "RBAC", rules={"action": "ALLOW", "policies": policies})


_ALWAYS = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}


def _bucket(count: int) -> Config:
    return {"max_tokens": count, "tokens_per_fill": count, "fill_interval": "1s"}


def rate_limits(mesh: Mesh) -> Config:
    """Limit the rate of all clients and of each tenant; excess requests get a retry delay."""
    tenant = {"request_headers": {"header_name": TENANT_HEADER, "descriptor_key": "tenant"}}
    return filter_of(
        "local_ratelimit",
        "LocalRateLimit",
        **_rate("edge", mesh.edge.requests_per_second),
        rate_limits=[{"actions": [tenant]}],
        descriptors=[
            {
                "entries": [{"key": "tenant"}],
                "token_bucket": _bucket(mesh.edge.requests_per_second_of_a_tenant),
            }
        ],
    )


def health_rate_limit(mesh: Mesh) -> Config:
    """Limit health checks apart from everything else, in a route's own configuration."""
    kind = f"{TYPES}extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
    return {"@type": kind, **_rate("edge_health", mesh.edge.limits.health_per_second)}


def _rate(name: str, count: int) -> Config:
    return {
        "stat_prefix": name,
        "token_bucket": _bucket(count),
        "filter_enabled": _ALWAYS,
        "filter_enforced": _ALWAYS,
        "rate_limited_as_resource_exhausted": True,
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "response_headers_to_add": [{"header": {"key": "retry-after", "value": "1"}}],
    }


def new_connections(mesh: Mesh) -> Config:
    """Close new connections beyond a rate, whatever the kernel has accepted.

    With the time for a handshake it bounds how many connections can be open that say nothing.
    """
    limits = mesh.edge.limits
    return typed(
        "envoy.filters.listener.local_ratelimit",
        "extensions.filters.listener.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="edge_connections",
        token_bucket={
            "max_tokens": limits.connections_burst,
            "tokens_per_fill": limits.connections_per_second,
            "fill_interval": "1s",
        },
    )
