"""Plans the layout of a mesh on this machine: processes, ports and settings of each."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from vtryon.catalog import CATALOG, JOBS, KAFKA, REST, ServiceKind
from vtryon.errors import SettingsError
from vtryon_mesh.certificates import Authority
from vtryon_mesh.description import EDGE, HTTP_HEALTH, Mesh
from vtryon_mesh.envoy.edge import EdgePlace, render_edge
from vtryon_mesh.envoy.pieces import Address, Config
from vtryon_mesh.envoy.routes import Canary
from vtryon_mesh.envoy.sidecar import Sidecar, render_sidecar
from vtryon_mesh.envoy.tls import EnvoyCertificate
from vtryon_mesh.local.layout import (
    BROKER,
    HOST,
    REGISTRY,
    TRITON,
    MeshLayout,
    Process,
    UpOptions,
)
from vtryon_mesh.local.variables import Variables
from vtryon_mesh.validate import find_envoy

# Replica r of a service is at its port + 100 r; its sidecar and all Envoys' own ports beyond.
_REPLICA, _INBOUND, _OUTBOUND, _ADMIN, _METRICS = 100, 1000, 2000, 3000, 4000
_TRITON, _BROKER, _REGISTRY = 8001, 9092, 8081


def lay_out(mesh: Mesh, wanted: UpOptions, folder: Path) -> MeshLayout:
    """Plan every process, without writing anything.

    Raises:
        SettingsError: a service is unknown, Envoy is missing, or an environment variable
            contradicts the plan.
    """
    known = [name for name in mesh.services if name in CATALOG]
    for name in [*wanted.services, *wanted.replicas, *wanted.canaries]:
        if name not in known:
            raise SettingsError(f"no service {name}; there are {', '.join(known)}")
    for name in wanted.canaries:
        at_the_edge = EDGE in mesh.services[name].callers
        if not wanted.mtls or wanted.replicas.get(name, 1) < 2 or at_the_edge:
            raise SettingsError(
                f"a canary of {name} takes --mtls, two replicas, and another service that calls it"
            )
    with ExitStack() as held:
        return _Planner(mesh, wanted, folder.resolve(), held).plan()


class _Planner:
    def __init__(self, mesh: Mesh, wanted: UpOptions, folder: Path, held: ExitStack) -> None:
        self._mesh = mesh
        self._wanted = wanted
        self._folder = folder
        self._certificates = folder / "certificates"
        self._envoy = str(find_envoy())
        self._processes: list[Process] = []
        self._configs: dict[str, Config] = {}
        self._held = held

    def plan(self) -> MeshLayout:
        mesh, wanted = self._mesh, self._wanted
        authority = None
        if wanted.mtls:
            authority = Authority.create()
        applications = {name: self._places(name, 0) for name in wanted.services}
        reached = applications
        if wanted.mtls:
            reached = {name: self._places(name, _INBOUND) for name in wanted.services}
        if wanted.backend == "triton":
            self._add_triton()
        if KAFKA in wanted.services:
            self._broker = self._add_kafka(BROKER, _BROKER)
            file = str(self._folder / "schemas.json")
            self._registry = self._add_kafka(REGISTRY, _REGISTRY, "--file", file, ready="subjects")
        for name in wanted.services:
            for number, address in enumerate(applications[name]):
                label = self._label(name, number)
                targets: Mapping[str, Sequence[Address]] = {
                    callee: reached[callee] for callee in mesh.callees(name) if callee in reached
                }
                if wanted.mtls:
                    targets = self._add_sidecar(label, name, number, address, reached)
                self._add_service(label, name, address, targets)
        edge_address = None
        if set(mesh.edge.serves) & set(wanted.services):
            edge_address = self._place(mesh.edge.port)
            self._add_edge(edge_address, reached)
        processes = tuple(sorted(self._processes, key=lambda one: one.priority))
        return MeshLayout(
            mesh,
            processes,
            self._configs,
            edge_address,
            self._folder,
            authority,
            wanted.certificate_days,
            reached,
        )

    def _label(self, name: str, number: int) -> str:
        return f"{name}-{number + 1}" if self._count(name) > 1 else name

    def _count(self, name: str) -> int:
        return self._wanted.replicas.get(name, 1)

    def _places(self, name: str, offset: int) -> list[Address]:
        first = self._mesh.services[name].port + offset
        places = [self._place(first + _REPLICA * number) for number in range(self._count(name))]
        return [replace(one, zone=self._zone(number)) for number, one in enumerate(places)]

    def _zone(self, number: int) -> str:
        """Name the zone of a service's replica; nothing where there is but one."""
        zones = self._wanted.zones
        return f"zone-{number % zones + 1}" if zones > 1 else ""

    def _place(self, port: int) -> Address:
        """Give the port, or one that the system has; held until all are chosen."""
        if not self._wanted.free_ports:
            return Address(HOST, port)
        held = socket.create_server((HOST, 0))
        return Address(HOST, self._held.enter_context(held).getsockname()[1])

    def _add_service(
        self, label: str, name: str, address: Address, targets: Mapping[str, Sequence[Address]]
    ) -> None:
        command = (sys.executable, "-m", "vtryon", "serve", name, "--listen", str(address))
        metrics = self._place(address.port + _METRICS)
        variables = Variables(name, os.environ, self._wanted.variables)
        variables.refuse("LISTEN", unless=str(address))
        variables.decide("PROMETHEUS_LISTEN", str(metrics))
        for callee, addresses in targets.items():
            target = "ipv4:" + ",".join(map(str, addresses))
            variables.decide(f"{callee.upper().replace('-', '_')}_TARGET", target)
        # Callers' Envoys are to see that it is going away before it refuses them.
        variables.default("DRAIN_DELAY_SECONDS", f"{2.5 * self._mesh.health_interval:g}")
        if self._wanted.otlp is not None:
            variables.default("OTLP_ENDPOINT", str(self._wanted.otlp), over_short=True)
        if CATALOG[name].kind is ServiceKind.STAGE:
            backend = variables.backend(self._wanted.backend)
            if backend == "triton" and self._wanted.backend == "triton":
                variables.decide("TRITON_URL", str(self._triton))
        if name == JOBS:
            self._set_up_jobs(variables)
        if name == REST:
            # The edge knows its names; without tokens, pages of other sites are REST's to refuse.
            known = ("localhost", *self._mesh.edge.hosts)
            hosts = "*" if self._wanted.jwks is not None else ",".join(known)
            variables.default("ALLOWED_HOSTS", hosts)
        if name == KAFKA:
            self._set_up_kafka(variables)
        self._processes.append(
            Process(
                label,
                command,
                variables.added,
                (address, metrics),
                priority=CATALOG[name].start_order,
                health=address,
                metrics=f"{metrics}/metrics",
                grpc=self._mesh.services[name].grpc,
                ready=HTTP_HEALTH.strip("/"),
            )
        )

    def _add_sidecar(
        self,
        label: str,
        name: str,
        number: int,
        application: Address,
        reached: Mapping[str, Sequence[Address]],
    ) -> dict[str, Sequence[Address]]:
        """Add an Envoy beside a replica; gives where it takes the replica's own calls."""
        mesh = self._mesh
        port = mesh.services[name].port + _REPLICA * number
        callees = [callee for callee in mesh.callees(name) if callee in reached]
        outbound = {
            callee: self._place(mesh.services[callee].port + _OUTBOUND + _REPLICA * number)
            for callee in callees
        }
        place = Sidecar(
            name,
            admin=self._place(port + _ADMIN),
            application=application,
            inbound=reached[name][number],
            outbound=outbound,
            callees={callee: self._stable(callee, reached[callee]) for callee in callees},
            canaries={
                callee: Canary(self._wanted.canaries[callee], (reached[callee][-1],))
                for callee in callees
                if callee in self._wanted.canaries
            },
            certificates=self._certificates,
            zone=self._zone(number),
            access_log=self._log(label),
            otlp=self._wanted.otlp,
        )
        config = render_sidecar(mesh, place)
        listens = (place.admin, place.inbound, *outbound.values())
        self._add_envoy(f"{label}-envoy", config, listens, priority=30)
        return {callee: [address] for callee, address in outbound.items()}

    def _stable(self, callee: str, addresses: Sequence[Address]) -> Sequence[Address]:
        return addresses[:-1] if callee in self._wanted.canaries else addresses

    def _add_edge(self, edge_address: Address, reached: Mapping[str, Sequence[Address]]) -> None:
        mtls = self._wanted.mtls
        place = EdgePlace(
            admin=self._place(self._mesh.edge.port + _ADMIN),
            listen=edge_address,
            services={name: reached[name] for name in self._mesh.edge.serves if name in reached},
            certificates=self._certificates if mtls else None,
            jwks=self._wanted.jwks,
            server_certificate=EnvoyCertificate(EDGE, self._certificates) if mtls else None,
            access_log=self._log(EDGE),
            otlp=self._wanted.otlp,
        )
        config = render_edge(self._mesh, place)
        self._add_envoy(EDGE, config, (place.admin, edge_address), priority=50)

    def _add_envoy(
        self, name: str, config: Config, listens: tuple[Address, ...], *, priority: int
    ) -> None:
        self._configs[name] = config
        command = (self._envoy, "-c", str(self._folder / f"{name}.yaml"), "--concurrency", "1")
        options = ("--disable-hot-restart", "--log-level", "warning", "--drain-time-s", "5")
        metrics = f"{listens[0]}/stats/prometheus"
        self._processes.append(
            Process(name, (*command, *options), {}, listens, priority, listens[0], metrics)
        )

    def _add_triton(self) -> None:
        self._triton = self._place(_TRITON)
        others = {name: self._place(port) for name, port in (("http", 8000), ("metrics", 8002))}
        repository = self._folder / "model_repository"
        command = (sys.executable, "-m", "vtryon", "triton", "up", str(repository))
        ports = [f"--{name}-port={address.port}" for name, address in others.items()]
        self._processes.append(
            Process(
                TRITON,
                (*command, f"--grpc-port={self._triton.port}", *ports),
                {},
                (self._triton, *others.values()),
                priority=10,
                health=others["http"],
                metrics=f"{others['metrics']}/metrics",
                ready="v2/health/ready",
            )
        )

    def _add_kafka(self, name: str, port: int, *options: str, ready: str | None = None) -> Address:
        """Add the broker, which keeps everything in memory, or the schema registry."""
        place = self._place(port)
        command = (sys.executable, "-m", "vtryon", "kafka", name, "--listen", str(place))
        self._processes.append(
            Process(name, (*command, *options), {}, (place,), 10, place, metrics=None, ready=ready)
        )
        return place

    def _set_up_jobs(self, variables: Variables) -> None:
        """Give all replicas one ledger and one store, in the mesh's folder or the user's own."""
        if not variables.has("DATA_FOLDER"):
            variables.default("DATABASE_URL", f"sqlite:///{self._folder}/jobs.sqlite")
            variables.default("ARTIFACTS_URL", str(self._folder / "jobs"))
        if KAFKA in self._wanted.services:  # without it, Kafka has no responses
            variables.decide("OUTBOX", "true")

    def _set_up_kafka(self, variables: Variables) -> None:
        variables.decide("BOOTSTRAP_SERVERS", str(self._broker))
        variables.decide("REGISTRY_URL", f"http://{self._registry}")
        variables.decide("IDEMPOTENT", "false")  # this broker can't
        variables.default("CLAIMS_URL", str(self._folder / "claims"))
        variables.default("SERVES", "all")
        variables.default("CREATE_TOPICS", "true")

    def _log(self, name: str) -> Path:
        return self._folder / "logs" / f"{name}-access.log"
