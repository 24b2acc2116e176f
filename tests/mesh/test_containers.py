"""The files for people with Docker, as far as they can be checked without it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import compose_spec
import pytest
import yaml

from vtryon_mesh.description import Mesh

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def test_compose_holds() -> None:
    # As Compose does it: merges and variables first.
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "compose.yaml").read_text())
    read = yaml.safe_load(text)
    plain = {name: value for name, value in read.items() if not name.startswith("x-")}
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(plain))
    plain["services"]["edge"]["imagee"] = "x"
    with pytest.raises(ValueError, match="imagee"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(plain))


def test_every_service_of_the_mesh_is_there_with_its_envoy() -> None:
    mesh = Mesh.load()
    for stage in Mesh.load().services:
        variables = SERVICES[stage]["environment"]
        assert variables["SERVICE"] == stage
        assert variables["LISTEN"] == f"127.0.0.1:{mesh.services[stage].port}"
        sidecar = SERVICES[f"{stage}-envoy"]
        assert sidecar["network_mode"] == f"service:{stage}"
        assert f"./mesh/envoy/{stage}.yaml:/etc/envoy/envoy.yaml:ro" in sidecar["volumes"]


def test_mounted_files_exist_and_images_have_versions() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("./mesh"):
                assert (ROOT / source).exists(), name
        image = service["image"]
        assert image.startswith(("vtryon:", "${VTRYON_")) or ":latest" not in image
        assert ":" in image


def test_nothing_but_the_edge_and_two_pages_is_published() -> None:
    published = {name: one["ports"] for name, one in SERVICES.items() if "ports" in one}
    assert published == {
        "edge": ["8080:8080"],
        "jaeger": ["127.0.0.1:16686:16686"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_services_run_without_rights() -> None:
    for stage in Mesh.load().services:
        service = SERVICES[stage]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert "user" not in service  # the image's own, which is not root


def test_the_dockerfile_is_well_written() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "services" / "Dockerfile"], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
    text = (ROOT / "services" / "Dockerfile").read_text()
    assert text.index("USER 10001") < text.index("CMD [")
