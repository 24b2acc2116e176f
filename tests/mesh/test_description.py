"""One description; it agrees with the protos, with the services' settings, and with Envoy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vtryon.catalog import CATALOG, EMBEDDABLE, JOBS
from vtryon.errors import SettingsError
from vtryon.types import Stage
from vtryon_mesh.description import CONTENT_HEADER, DEFAULT_PATH, TENANT_HEADER, Mesh
from vtryon_mesh.local.layout import UpOptions
from vtryon_mesh.local.planning import lay_out
from vtryon_mesh.local.services import choose
from vtryon_services.host import settings_of


def changed(tmp_path: Path, **changes: object) -> Path:
    described = yaml.safe_load(DEFAULT_PATH.read_text())
    path = tmp_path / "mesh.yaml"
    path.write_text(yaml.safe_dump(described | changes))
    return path


def test_services_have_the_names_and_ports_that_they_have_elsewhere() -> None:
    mesh = Mesh.load()
    assert {name: one.port for name, one in mesh.services.items()} == {
        name: entry.port for name, entry in CATALOG.items()
    }
    for stage in Stage:
        name = "".join(word.capitalize() for word in stage.value.split("-"))
        assert mesh.services[stage].grpc == f"vtryon.v1.{name}Service"
    assert mesh.services[JOBS].grpc == "vtryon.v1.JobService"


def test_headers_are_those_of_the_sdk() -> None:
    from vtryon.wire.stream import CONTENT_KEY, TENANT_KEY

    assert (CONTENT_HEADER, TENANT_HEADER) == (CONTENT_KEY, TENANT_KEY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"health_interval": 0}, "health_interval"),
        ({"surprise": 1}, "surprise"),
        ({"services": {}}, "no such service"),
    ],
)
def test_what_does_not_hold_is_refused(tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Mesh.load(changed(tmp_path, **changes))


def test_up_refuses_a_service_that_it_can_not_start(tmp_path: Path) -> None:
    described = yaml.safe_load(DEFAULT_PATH.read_text())["services"]
    other = {"grpc": "vtryon.v1.Upscaler", "port": 50099, "callers": [], "balance": "least-request"}
    mesh = Mesh.load(changed(tmp_path, services={**described, "upscaler": other}))
    chosen = choose([], mesh, "scripted", kafka=False)
    assert "upscaler" in chosen.services
    with pytest.raises(SettingsError, match="no service upscaler; there are decoding, jobs"):
        lay_out(mesh, UpOptions(chosen.services, {}), tmp_path)


def test_services_refuse_before_the_envoys_of_their_callers_do() -> None:
    """Services share their calls between tenants; an Envoy refuses everybody."""
    for name in EMBEDDABLE:
        assert Mesh.load().open_calls > settings_of(name).model_fields["max_calls"].default
