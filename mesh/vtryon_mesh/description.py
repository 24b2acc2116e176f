"""`mesh.yaml`: the one description that everything else is rendered from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vtryon.errors import SettingsError

EDGE = "edge"
# Says what a request works on, so that equal content goes to the replica that has seen it.
CONTENT_HEADER = "x-vtryon-content-digest"
HEALTH_PREFIX = "/grpc.health.v1.Health/"
HTTP_HEALTH = "/healthz"
TENANT_HEADER = "x-vtryon-tenant"
# In the repository beside the package, in an installation inside it.
_HERE = Path(__file__).parent
DEFAULT_PATH = next(
    (path for path in (_HERE / "mesh.yaml", _HERE.parent / "mesh.yaml") if path.exists()),
    _HERE / "mesh.yaml",
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Service(_Part):
    """A service of the mesh.

    Attributes:
        grpc: its full name on the wire; or else `http`, what its paths begin with.
        callers: who may call it; nobody else may.
        private: other gRPC services of the same process, and who alone may call each.
        balance: between replicas: the one with the least to do, or the one that content belongs to.
        max_requests: admitted at once to each replica, its queue included.
    """

    grpc: str | None = None
    http: str | None = None
    port: int = Field(ge=1, le=65535)
    callers: tuple[str, ...]
    private: dict[str, tuple[str, ...]] = {}
    balance: Literal["least-request", "content"]
    max_requests: int = Field(ge=1)

    @model_validator(mode="after")
    def _speaks_one(self) -> Service:
        if (self.grpc is None) == (self.http is None):
            raise ValueError("a service has either grpc or http")
        return self

    @property
    def prefix(self) -> str:
        """What the paths of its requests begin with."""
        return self.http or f"/{self.grpc}/"

    @property
    def prefixes(self) -> list[str]:
        """What the paths of all its requests begin with."""
        return [self.prefix, *(f"/{name}/" for name in self.private)]

    @property
    def allowed(self) -> dict[str, tuple[Sequence[str], Sequence[str]]]:
        """By name: what paths begin with, and who may ask for them; nobody may for others."""
        rules: dict[str, tuple[Sequence[str], Sequence[str]]] = {}
        if self.callers:
            rules["callers"] = ([self.prefix, self.health], self.callers)
        for name, callers in self.private.items():
            rules[f"callers-of-{name.rpartition('.')[2].lower()}"] = ([f"/{name}/"], callers)
        return rules

    @property
    def health(self) -> str:
        """What the paths of questions for its health begin with."""
        return HTTP_HEALTH if self.grpc is None else HEALTH_PREFIX


class Jwt(_Part):
    """Which tokens the edge takes: of a key of the JWKS, with this scope, and with a tenant."""

    issuer: str
    audience: str
    scope: str
    tenant_claim: str


class Edge(_Part):
    """The mesh's door."""

    port: int = Field(ge=1, le=65535)
    serves: tuple[str, ...]
    jwt: Jwt
    requests_per_second: int = Field(ge=1)
    requests_per_second_of_a_tenant: int = Field(ge=1)
    cors_origins: tuple[str, ...] = ()


class Mesh(_Part):
    """All of it; `own_zone` is in percent, and behind it all is in seconds."""

    trust_domain: str
    namespace: str
    services: dict[str, Service]
    edge: Edge
    own_zone: int = Field(ge=1, le=99)
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
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except (OSError, yaml.YAMLError, ValidationError) as error:
            raise SettingsError(f"{path.name} does not hold: {error}") from error

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
