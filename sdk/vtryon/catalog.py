"""The catalogue of services: the name, port, extra, settings and factory of each.

The only place that lists services. `vtryon serve`, `up` and `doctor`, the defaults of addresses,
the advice on extras, and the mesh read it; tests compare `mesh.yaml` and the extras of the package
with it. Settings and factories are named, not imported, since the SDK works without the services.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from vtryon.types import Stage

JOBS = "jobs"
REST = "rest"
KAFKA = "kafka"


class ServiceKind(StrEnum):
    """How a service is run."""

    STAGE = "stage"  # computes; has a backend
    PIPELINE = "pipeline"
    JOBS = "jobs"
    BRIDGE = "bridge"  # another protocol; alone in its process


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """A service.

    Attributes:
        name: on the command line, in `mesh.yaml`, Envoy and Kubernetes.
        port: where it listens by default, at 127.0.0.1.
        settings: its class of settings, as module:name.
        factory: what makes it, as module:name.
        extra: the extra of the package that it needs; empty if its backend decides.
        optional: whether a mesh works without it.
        start_order: services with lower numbers start first, so that callees precede callers.
    """

    name: str
    kind: ServiceKind
    port: int
    settings: str
    factory: str
    extra: str = ""
    optional: bool = False
    start_order: int = 20

    @property
    def address(self) -> str:
        """The default address."""
        return f"127.0.0.1:{self.port}"


def _stage(stage: Stage, port: int, title: str) -> ServiceEntry:
    package = f"vtryon_services.stages.{stage.replace('-', '_')}"
    return ServiceEntry(
        stage,
        ServiceKind.STAGE,
        port,
        f"{package}.settings:{title}Settings",
        f"{package}.service:make_service",
    )


_SERVICES = "vtryon_services"
_ENTRIES = (
    _stage(Stage.LATENT_ENCODER, 50051, "LatentEncoder"),
    _stage(Stage.TEXT_ENCODER, 50052, "TextEncoder"),
    _stage(Stage.SAMPLING, 50053, "Sampling"),
    _stage(Stage.DECODING, 50054, "Decoding"),
    ServiceEntry(
        Stage.PIPELINE,
        ServiceKind.PIPELINE,
        50050,
        f"{_SERVICES}.pipeline.settings:PipelineSettings",
        f"{_SERVICES}.pipeline.service:make_service",
        extra="base",
        start_order=40,
    ),
    ServiceEntry(
        JOBS,
        ServiceKind.JOBS,
        50055,
        f"{_SERVICES}.jobs.settings:JobsSettings",
        f"{_SERVICES}.jobs.service:make_services",
        extra="jobs",
        optional=True,
        start_order=42,
    ),
    ServiceEntry(
        REST,
        ServiceKind.BRIDGE,
        8000,
        f"{_SERVICES}.bridges.rest.settings:RestSettings",
        f"{_SERVICES}.bridges.rest.server:begin",
        extra="rest",
        optional=True,
        start_order=45,
    ),
    ServiceEntry(
        KAFKA,
        ServiceKind.BRIDGE,
        50056,
        f"{_SERVICES}.bridges.kafka.settings:KafkaSettings",
        f"{_SERVICES}.bridges.kafka.bridge:begin",
        extra="kafka",
        start_order=45,
    ),
)
CATALOG: Mapping[str, ServiceEntry] = {one.name: one for one in _ENTRIES}
EMBEDDABLE = tuple(one.name for one in _ENTRIES if one.kind is not ServiceKind.BRIDGE)
BRIDGES = tuple(one.name for one in _ENTRIES if one.kind is ServiceKind.BRIDGE)
