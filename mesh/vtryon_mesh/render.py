"""Everything that is rendered from `mesh.yaml`, by its place in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from vtryon_mesh.description import EDGE, Mesh
from vtryon_mesh.documents import write
from vtryon_mesh.envoy.access import RemoteKeys
from vtryon_mesh.envoy.edge import EdgePlace, render_edge
from vtryon_mesh.envoy.pieces import Address, Config
from vtryon_mesh.envoy.sidecar import Sidecar, render_sidecar
from vtryon_mesh.envoy.tls import EnvoyCertificate
from vtryon_mesh.istio import Mode, render_istio

_ADMIN, _INBOUND = 9901, 15443
METRICS = Address("0.0.0.0", 9902)  # noqa: S104
CERTIFICATES = Path("/etc/vtryon/certificates")
_JWKS = CERTIFICATES / "jwks.json"
_LOG = Path("/dev/stdout")
_OTLP = Address("otel-collector", 4317)
_MODES: tuple[Mode, ...] = ("sidecar", "ambient")
_HEAD = "# Made by `vtryon mesh render` from mesh.yaml.\n"


def envoys(mesh: Mesh) -> dict[str, Config]:
    """Render Envoy for containers: the edge, and a sidecar in each service's network namespace."""
    configs = {
        EDGE: render_edge(
            mesh,
            EdgePlace(
                admin=Address("127.0.0.1", _ADMIN),
                listen=Address("0.0.0.0", mesh.edge.port),  # noqa: S104
                services={name: [Address(name, _INBOUND)] for name in mesh.edge.serves},
                certificates=CERTIFICATES,
                jwks=RemoteKeys(uri) if (uri := mesh.edge.jwt.jwks_uri) else _JWKS,
                server_certificate=EnvoyCertificate(EDGE, CERTIFICATES),
                access_log=_LOG,
                otlp=_OTLP,
                metrics=METRICS,
            ),
        )
    }
    for name, service in mesh.services.items():
        callees = mesh.callees(name)
        place = Sidecar(
            name,
            admin=Address("127.0.0.1", _ADMIN),
            application=Address("127.0.0.1", service.port),
            inbound=Address("0.0.0.0", _INBOUND),  # noqa: S104
            outbound={one: Address("127.0.0.1", mesh.services[one].port) for one in callees},
            callees={one: [Address(one, _INBOUND)] for one in callees},
            certificates=CERTIFICATES,
            access_log=_LOG,
            otlp=_OTLP,
            metrics=METRICS,
        )
        configs[name] = render_sidecar(mesh, place)
    return configs


def render(mesh: Mesh) -> dict[PurePosixPath, str]:
    """Render all files."""
    files = {
        PurePosixPath("envoy", f"{name}.yaml"): _HEAD + write(config)
        for name, config in envoys(mesh).items()
    }
    for mode in _MODES:
        for name, manifests in render_istio(mesh, mode).items():
            files[PurePosixPath("istio", mode, name)] = _HEAD + write(*manifests)
    return files


def write_all(mesh: Mesh, folder: Path) -> list[Path]:
    """Write all files, in place of those that were there."""
    files = render(mesh)
    for top in {path.parts[0] for path in files}:
        shutil.rmtree(folder / top, ignore_errors=True)
    written = []
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        written.append(target)
    return written
