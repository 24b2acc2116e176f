"""The layout of a mesh on this machine: options, processes, addresses and configurations."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vtryon_mesh.certificates import LEAF_DAYS, Authority, make_certificates
from vtryon_mesh.description import Mesh
from vtryon_mesh.documents import write
from vtryon_mesh.envoy.access import Keys
from vtryon_mesh.envoy.pieces import Address, Config

HOST = "127.0.0.1"
TRITON = "triton"
ENVOY_READY = "ready"
BROKER = "broker"
REGISTRY = "registry"


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Options of `vtryon up`.

    Attributes:
        services: to start; replicas: of each service, one by default.
        mtls: sidecars with mutual TLS, and TLS at the edge.
        canaries: percent of a service's calls for its last replica; the rest is shared equally.
        zones: number of zones to spread replicas over; sidecars prefer their own.
        jwks: keys that sign the tokens that the edge accepts; None accepts every client.
        certificate_days: lifetime of a certificate.
        free_ports: use ports chosen by the system, in place of those of `mesh.yaml`.
    """

    services: Sequence[str]
    replicas: Mapping[str, int]
    backend: Literal["torch", "triton", "scripted"] = "torch"
    mtls: bool = False
    canaries: Mapping[str, int] = field(default_factory=dict)
    zones: int = 1
    jwks: Keys | None = None
    certificate_days: float = LEAF_DAYS
    free_ports: bool = False
    otlp: Address | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the mesh.

    Attributes:
        name: such as "sampling-2" or "sampling-2-envoy".
        priority: start order; processes end in reverse.
        grpc: the service whose health is checked; None if `health` is HTTP.
        ready: the HTTP path of the readiness check; None if listening is sufficient.
        health: address of the health check.
        metrics: Prometheus endpoint, host:port/path; None without one.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    listens: tuple[Address, ...]
    priority: int
    health: Address
    metrics: str | None
    grpc: str | None = None
    ready: str | None = ENVOY_READY


@dataclass(frozen=True, slots=True)
class MeshLayout:
    """All processes, their configurations, and the edge's address; None without an edge.

    Attributes:
        authority: who signs the mesh's certificates, for `certificate_days`; None without mTLS.
    """

    mesh: Mesh
    processes: tuple[Process, ...]
    configs: Mapping[str, Config]
    edge_address: Address | None
    folder: Path
    authority: Authority | None
    certificate_days: float = LEAF_DAYS
    replicas: Mapping[str, Sequence[Address]] = field(default_factory=dict)

    @property
    def certificates(self) -> Path:
        """The folder of the certificates."""
        return self.folder / "certificates"

    @property
    def kafka(self) -> dict[str, str]:
        """Settings of Kafka clients: broker, registry and claim-check store."""
        names = [f"VTRYON_KAFKA_{name}" for name in ("BOOTSTRAP_SERVERS", "REGISTRY_URL")]
        names.append("VTRYON_KAFKA_CLAIMS_URL")
        every = [one.environment for one in self.processes if names[0] in one.environment]
        return {name: every[0][name] for name in names if name in every[0]} if every else {}

    def write(self) -> None:
        """Write certificates, Envoy's configurations, and one for a Prometheus that watches all."""
        if self.authority is not None:
            self.authority.keep(self.certificates / "authority")
            make_certificates(self.certificates, self.mesh, self.authority, self.certificate_days)
        for name, config in self.configs.items():
            (self.folder / f"{name}.yaml").write_text(write(config))
        (self.folder / "prometheus.yml").write_text(write(self._prometheus()))

    def _prometheus(self) -> Config:
        jobs = []
        for process in self.processes:
            if process.metrics is None:
                continue
            target, _, path = process.metrics.partition("/")
            jobs.append(
                {
                    "job_name": process.name,
                    "metrics_path": f"/{path}",
                    "static_configs": [{"targets": [target]}],
                }
            )
        return {"global": {"scrape_interval": "5s"}, "scrape_configs": jobs}

    def taken_ports(self) -> Iterator[tuple[Address, str]]:
        """Return ports that are already in use, and the process that needs each."""
        for process in self.processes:
            for address in process.listens:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        probe.bind((address.host, address.port))
                    except OSError:
                        yield address, process.name
