from __future__ import annotations

import json
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from tests.support.mesh import wait_until_healthy

import vtryon
from vtryon.types import Stage
from vtryon_mesh.description import Mesh
from vtryon_mesh.local.layout import MeshLayout, UpOptions
from vtryon_mesh.local.planning import lay_out
from vtryon_mesh.local.supervise import Supervisor, supervised
from vtryon_mesh.local.tokens import Issuer


@dataclass(frozen=True)
class Town:
    """A mesh that runs: real Envoys, mutual TLS, tokens, two replicas of three services."""

    mesh: Mesh
    layout: MeshLayout
    supervisor: Supervisor
    issuer: Issuer

    @property
    def edge_address(self) -> str:
        return str(self.layout.edge_address)

    @property
    def tls(self) -> vtryon.Tls:
        return vtryon.Tls(ca_path=self.layout.certificates / "ca.crt")

    def client(self, token: str | None = None) -> vtryon.Client:
        given = self.issuer.token("acme") if token is None else token
        return vtryon.Client(self.edge_address, tls=self.tls, token=given)

    def inbound(self, name: str) -> str:
        """Where the mesh reaches the first replica of a service."""
        labels = {f"{name}-envoy", f"{name}-1-envoy"}
        [process] = [one for one in self.layout.processes if one.name in labels]
        return str(process.listens[1])

    def access_log(self, name: str) -> list[dict]:
        """What an Envoy has logged, without the fields' braces of half a line."""
        path = self.layout.folder / "logs" / f"{name}-access.log"
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def calls(self, caller: str, cluster: str) -> dict[str, int]:
        """How many calls a sidecar has made to each replica of a service."""
        [process] = [one for one in self.layout.processes if one.name == f"{caller}-envoy"]
        url = f"http://{process.listens[0]}/clusters?format=json"
        with urllib.request.urlopen(url, timeout=5) as answer:
            told = json.load(answer)["cluster_statuses"]
        [found] = [one for one in told if one["name"] == cluster]
        counted = {}
        for host in found["host_statuses"]:
            place = host["address"]["socket_address"]
            stats = {one["name"]: int(one.get("value", 0)) for one in host["stats"]}
            counted[f"{place['address']}:{place['port_value']}"] = stats["rq_total"]
        return counted

    def channel(self, target: str, identity: str | None, folder: Path | None = None):
        """Connect to a sidecar with somebody's certificate."""
        own = folder or self.layout.certificates
        ca = (self.layout.certificates / "ca.crt").read_bytes()
        key = certificate = None
        if identity is not None:
            key = (own / f"{identity}.key").read_bytes()
            certificate = (own / f"{identity}.crt").read_bytes()
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        options = [("grpc.ssl_target_name_override", "localhost")]
        return grpc.aio.secure_channel(target, credentials, options=options)


# For meshes that nobody calls any more when they end.
AT_ONCE = {"VTRYON_DRAIN_DELAY_SECONDS": "0"}


@contextmanager
def town_of(
    folder: Path, services: Sequence[str] | None = tuple(Stage), **wanted: object
) -> Iterator[Town]:
    """Run a mesh: stages and pipeline, or other services; None for all."""
    described = Mesh.load()
    # Tests ask more in a second than a tenant may.
    edge = described.edge.model_copy(
        update={"requests_per_second": 2000, "requests_per_second_of_a_tenant": 500}
    )
    mesh = described.model_copy(update={"edge": edge})
    issuer = Issuer.create(mesh)
    asked = UpOptions(
        services=[str(name) for name in services or mesh.services],
        backend="scripted",
        mtls=True,
        jwks=issuer.jwks,
        free_ports=True,
        **{"replicas": {"sampling": 2, "pipeline": 2, "latent-encoder": 2}, **wanted},
    )
    layout = lay_out(mesh, asked, folder)
    with supervised(layout) as supervisor:
        wait_until_healthy(supervisor)
        yield Town(mesh, layout, supervisor, issuer)


@pytest.fixture(scope="package")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with town_of(tmp_path_factory.mktemp("mesh"), services=None) as town:
        yield town


@pytest.fixture
async def caller(town: Town) -> AsyncIterator[vtryon.Client]:
    async with town.client() as client:
        yield client
