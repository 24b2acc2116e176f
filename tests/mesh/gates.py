"""Edges of a test's own, before the services of the mesh that all tests share."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
from tests.mesh.conftest import Town
from tests.support.envoy import running_envoy
from tests.support.mesh import free_ports

import vtryon
from vtryon_mesh.description import EDGE, Mesh
from vtryon_mesh.envoy.access import Keys
from vtryon_mesh.envoy.edge import EdgePlace, render_edge
from vtryon_mesh.envoy.pieces import Address
from vtryon_mesh.envoy.tls import EnvoyCertificate


@dataclass(frozen=True)
class Gate:
    """An edge of its own before the services of the mesh, with limits that tests can reach."""

    town: Town
    mesh: Mesh
    edge_address: Address
    admin: Address

    def connect(self, *protocols: str) -> ssl.SSLSocket:
        """Open a connection, and do the handshake."""
        context = ssl.create_default_context(cafile=str(self.town.layout.certificates / "ca.crt"))
        context.set_alpn_protocols(list(protocols or ("http/1.1",)))
        plain = socket.create_connection(
            (self.edge_address.host, self.edge_address.port), timeout=20
        )
        return context.wrap_socket(plain, server_hostname="localhost")

    def channel(self) -> grpc.aio.Channel:
        return self.town.channel(str(self.edge_address), None)

    def client(self, token: str | None = None) -> vtryon.Client:
        tls = vtryon.Tls(ca_path=self.town.layout.certificates / "ca.crt")
        given = token or self.town.issuer.token("acme")
        return vtryon.Client(str(self.edge_address), tls=tls, token=given)

    def web(self, tenant: str = "acme") -> httpx.AsyncClient:
        context = ssl.create_default_context(cafile=str(self.town.layout.certificates / "ca.crt"))
        headers = {"authorization": f"Bearer {self.town.issuer.token(tenant)}"}
        return httpx.AsyncClient(
            base_url=f"https://{self.edge_address}", verify=context, headers=headers, timeout=30
        )

    def figures(self, wanted: str) -> dict[str, int]:
        """Statistics of the Envoy whose names the expression finds."""
        url = f"http://{self.admin}/stats?filter={wanted}&format=json"
        with urllib.request.urlopen(url, timeout=5) as answer:
            stats = json.load(answer)["stats"]
        return {one["name"]: one["value"] for one in stats if "name" in one}


@contextlib.contextmanager
def gate_of(
    town: Town,
    folder: Path,
    limits: Mapping[str, float] | None = None,
    keys: Keys | None = None,
    **changes: object,
) -> Iterator[Gate]:
    """Run an edge with other limits, other keys, or other fields of the description's edge."""
    edge = town.mesh.edge.model_copy(
        update={"limits": town.mesh.edge.limits.model_copy(update=dict(limits or {})), **changes}
    )
    mesh = town.mesh.model_copy(update={"edge": edge})
    admin, edge_address = (Address("127.0.0.1", port) for port in free_ports(2))
    certificates = town.layout.certificates
    place = EdgePlace(
        admin=admin,
        listen=edge_address,
        services={name: town.layout.replicas[name] for name in mesh.edge.serves},
        certificates=certificates,
        jwks=keys or town.issuer.jwks,
        server_certificate=EnvoyCertificate(EDGE, certificates),
    )
    with running_envoy(render_edge(mesh, place), folder):
        yield Gate(town, mesh, edge_address, admin)
