"""`mesh.yaml`: the one description that everything else is rendered from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vtryon.errors import RequestError, SettingsError
from vtryon.files.text import read_text

EDGE = "edge"
# Says what a request works on, so that equal content goes to the replica that has seen it.
CONTENT_HEADER = "x-vtryon-content-digest"
HEALTH_PREFIX = "/grpc.health.v1.Health/"
HEALTH_CHECK = f"{HEALTH_PREFIX}Check"
HTTP_HEALTH = "/healthz"
TENANT_HEADER = "x-vtryon-tenant"
# In the repository beside the package, in an installation inside it.
_HERE = Path(__file__).parent
_MAX_BYTES = 1024 * 1024
DEFAULT_PATH = next(
    (path for path in (_HERE / "mesh.yaml", _HERE.parent / "mesh.yaml") if path.exists()),
    _HERE / "mesh.yaml",
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MeshService(_Part):
    """A service of the mesh.

    Attributes:
        grpc: its full gRPC name; or else `http`, the prefix of its paths.
        callers: services that may call it; all others are denied.
        private: further gRPC services of the same process, and the only callers of each.
        balance: between replicas: least requests, or by content digest.
    """

    grpc: str | None = None
    http: str | None = None
    port: int = Field(ge=1, le=65535)
    callers: tuple[str, ...]
    private: dict[str, tuple[str, ...]] = {}
    balance: Literal["least-request", "content"]

    @model_validator(mode="after")
    def _speaks_one(self) -> MeshService:
        if (self.grpc is None) == (self.http is None):
            raise ValueError("a service has either grpc or http")
        return self

    @property
    def prefix(self) -> str:
        """Prefix of the paths of its requests."""
        return self.http or f"/{self.grpc}/"

    @property
    def prefixes(self) -> list[str]:
        """Prefixes of the paths of all its requests."""
        return [self.prefix, *(f"/{name}/" for name in self.private)]

    @property
    def allowed(self) -> dict[str, tuple[Sequence[str], Sequence[str]]]:
        """By name: path prefixes, and their only permitted callers."""
        rules: dict[str, tuple[Sequence[str], Sequence[str]]] = {}
        if self.callers:
            rules["callers"] = ([self.prefix, self.health], self.callers)
        for name, callers in self.private.items():
            rules[f"callers-of-{name.rpartition('.')[2].lower()}"] = ([f"/{name}/"], callers)
        return rules

    @property
    def health(self) -> str:
        """Path prefix of its health checks."""
        return HTTP_HEALTH if self.grpc is None else HEALTH_PREFIX


class Jwt(_Part):
    """Which tokens the edge accepts: of a key of the JWKS, with this scope, and with a tenant.

    Attributes:
        jwks_uri: where the identity provider publishes its keys; None: the keys are in a file.
    """

    issuer: str
    audience: str
    scope: str
    tenant_claim: str
    jwks_uri: str | None = Field(default=None, pattern=r"^https?://[^/\s?#]+(/\S*)?$")


class EdgeLimits(_Part):
    """Limits of the edge. Times are in seconds; the defaults are in `mesh.yaml`.

    Attributes:
        connections: maximum open connections of all clients; further ones are closed on accept.
        connections_per_second: maximum rate of new connections; further ones are closed.
        connections_burst: maximum burst of new connections after an idle period.
        handshake: timeout of the TLS handshake; slower connections are closed.
        idle: how long a connection without a request is kept open.
        request_headers: time from a request's first byte to the end of its headers; then 408.
        request: time from a request's headers to the end of its body; then 408.
        streams_per_connection: maximum concurrent requests of an HTTP/2 connection.
        request_headers_kib: maximum size of a request's headers; larger ones are 431.
        buffered_kib: REST bodies up to this declared size are buffered before the service sees
            the request; larger ones are streamed to it.
        heap_mib: memory of the edge. Its timeouts shrink from 80 % on, and from 95 % on it accepts
            no connections and no requests (503).
        health_per_second: maximum rate of health checks without a token; more are 429.
    """

    connections: int = Field(ge=1)
    connections_per_second: int = Field(ge=1)
    connections_burst: int = Field(ge=1)
    handshake: float = Field(gt=0)
    idle: float = Field(gt=0)
    request_headers: float = Field(gt=0)
    request: float = Field(gt=0)
    streams_per_connection: int = Field(ge=1)
    request_headers_kib: int = Field(ge=1, le=8192)
    buffered_kib: int = Field(ge=1)
    heap_mib: int = Field(ge=64)
    health_per_second: int = Field(ge=1)


class Edge(_Part):
    """The entry point of the mesh.

    Attributes:
        hosts: host names of the edge, such as `try-on.example.com` or `*.example.com`. If the edge
            requires tokens, an empty list accepts every name; otherwise only loopback names and
            listed ones are accepted, so that no web page reaches the edge under a name of its own
            (DNS rebinding).
    """

    port: int = Field(ge=1, le=65535)
    serves: tuple[str, ...]
    jwt: Jwt
    requests_per_second: int = Field(ge=1)
    requests_per_second_of_a_tenant: int = Field(ge=1)
    limits: EdgeLimits
    hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()


class Mesh(_Part):
    """The whole mesh.

    Attributes:
        own_zone: percent of its calls that a caller keeps in its own zone.
        open_calls: maximum open calls to each replica per calling Envoy; more are UNAVAILABLE.
            Must exceed `max_calls` of the services, which is shared fairly between tenants: this
            limit would reject all tenants because of one.
        longest_call: seconds after which Envoy ends a call.
        health_interval: seconds between two health checks of a replica.
        ejection: seconds for which a replica with failing connections is ejected.
    """

    trust_domain: str
    namespace: str
    services: dict[str, MeshService]
    edge: Edge
    own_zone: int = Field(ge=1, le=99)
    open_calls: int = Field(ge=1)
    longest_call: int = Field(gt=0)
    health_interval: float = Field(gt=0)
    ejection: float = Field(gt=0)

    @model_validator(mode="after")
    def _known(self) -> Mesh:
        lists = [
            callers
            for one in self.services.values()
            for callers in (one.callers, *one.private.values())
        ]
        named = {name for callers in lists for name in callers}
        unknown = (named | set(self.edge.serves)) - set(self.services) - {EDGE}
        if unknown:
            raise ValueError(f"no such service: {', '.join(sorted(unknown))}")
        ports = [one.port for one in self.services.values()]
        if len(ports) != len(set(ports)):
            raise ValueError("two services have one port")
        return self

    @classmethod
    def load(cls, path: Path = DEFAULT_PATH) -> Mesh:
        """Read a description.

        Raises:
            SettingsError: it can't be read or does not hold.
        """
        try:
            return cls.model_validate(yaml.safe_load(read_text(path, _MAX_BYTES)))
        except (RequestError, yaml.YAMLError, ValidationError) as error:
            raise SettingsError(f"{path.name} is invalid: {error}") from error

    @property
    def identities(self) -> list[str]:
        """Everybody in the mesh: the edge and the services."""
        return [EDGE, *self.services]

    def identity(self, name: str) -> str:
        """Give the SPIFFE identity of a service, or of the edge."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{name}"

    def callees(self, caller: str) -> list[str]:
        """Give the services that one may call."""
        return [name for name, one in self.services.items() if caller in one.callers]
