"""The files for people with Docker, as far as they can be checked without it."""

from __future__ import annotations

import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import compose_spec
import httpx
import pytest
import yaml
from tests.support.envoy import running_envoy
from tests.support.kafka import Kafka, broker_process, job_request, registry_process
from tests.support.mesh import free_ports
from tests.support.processes import ServedMesh, served

from vtryon.catalog import CATALOG
from vtryon_mesh.description import Mesh
from vtryon_mesh.envoy.edge import EdgePlace, render_edge
from vtryon_mesh.envoy.pieces import Address
from vtryon_mesh.render import METRICS
from vtryon_mesh.validate import find_envoy
from vtryon_services.bridges.targets import TargetSettings
from vtryon_services.runtime.settings import ProcessSettings

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


SETTINGS: dict[str, type[ProcessSettings]] = {
    name: pkgutil.resolve_name(entry.settings) for name, entry in CATALOG.items()
}


def listeners(stage: str) -> dict[str, str]:
    """Where a service's Envoy takes its calls: by address, for whom."""
    config = yaml.safe_load((ROOT / "mesh" / "envoy" / f"{stage}.yaml").read_text())
    return {
        f"{place['address']}:{place['port_value']}": one["name"].removeprefix("out-")
        for one in config["static_resources"]["listeners"]
        if one["name"].startswith("out-")
        for place in [one["address"]["socket_address"]]
    }


def settings_of(stage: str, monkeypatch: pytest.MonkeyPatch) -> ProcessSettings:
    """What a service reads from the environment that Compose gives it."""
    for name, value in SERVICES[stage]["environment"].items():
        if name.startswith("VTRYON_") and value is not None:
            monkeypatch.setenv(name, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))
    return SETTINGS[stage].load()


@pytest.mark.parametrize("stage", Mesh.load().services)
def test_every_target_is_where_the_envoy_beside_it_listens(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings as the service reads them, those that Compose leaves at their default among them."""
    settings = settings_of(stage, monkeypatch)
    reached = {
        listeners(stage).get(target_of(settings, callee)) for callee in Mesh.load().callees(stage)
    }
    assert reached == set(Mesh.load().callees(stage))


def target_of(settings: ProcessSettings, callee: str) -> str:
    if isinstance(settings, TargetSettings):
        return settings.target(callee)
    return str(getattr(settings, f"{callee.replace('-', '_')}_target"))


@contextmanager
def as_compose_has_it(stage: str, hosts: Mapping[str, str], folder: Path) -> Iterator[ServedMesh]:
    """Run a service with Compose's environment, where its hosts are at other addresses."""
    given = {}
    for name, value in SERVICES[stage]["environment"].items():
        for host, address in hosts.items():
            value = (value or "").replace(host, address)
        if name.startswith("VTRYON_") and value and "OTLP" not in name:
            given[name] = value.replace("/var/lib/vtryon", str(folder))
    given |= {"VTRYON_BACKEND": "scripted", "VTRYON_KAFKA_IDEMPOTENT": "false"}  # as the broker is
    with served(stage, **given) as running:
        yield running


@pytest.mark.timeout(180)
async def test_the_kafka_service_makes_a_job(tmp_path: Path) -> None:
    """Its real process with Compose's environment; only addresses are those of this machine."""
    broker, registry = broker_process(), registry_process(tmp_path / "schemas.json")
    with (
        broker.running(),
        registry.running(),
        served(
            "all",
            "jobs",
            VTRYON_BACKEND="scripted",
            VTRYON_JOBS_OUTBOX="true",
            VTRYON_JOBS_DATABASE_URL=f"sqlite:///{tmp_path}/jobs.sqlite",
            VTRYON_JOBS_ARTIFACTS_URL=str(tmp_path / "jobs"),
        ) as mesh,
    ):
        hosts = {
            "broker:9092": f"127.0.0.1:{broker.port}",
            "registry:8081": f"127.0.0.1:{registry.port}",
            # As the Envoy beside it would lead on: each to one that knows all services.
            **dict.fromkeys(listeners("kafka"), mesh.target),
        }
        with as_compose_has_it("kafka", hosts, tmp_path):
            kafka = Kafka(broker, registry, prefix="vtryon")
            request = job_request("order-1", b"person", b"garment", steps=1)
            await kafka.send("jobs.requests", "job_request", request)
            [answer] = await kafka.answers("jobs.responses", "order-1")
            assert kafka.read(answer.value)["state"] == "SUCCEEDED"


def test_prometheus_asks_every_envoy_and_knows_the_alerts() -> None:
    config = yaml.safe_load((ROOT / "mesh" / "compose" / "prometheus.yml").read_text())
    [envoys] = [one for one in config["scrape_configs"] if one["job_name"] == "envoy"]
    [targets] = envoys["static_configs"]
    assert sorted(targets["targets"]) == sorted(
        f"{name}:{METRICS.port}" for name in Mesh.load().identities
    )
    mounted = SERVICES["prometheus"]["volumes"]
    assert "./helm/vtryon/alerts/vtryon.yaml:/etc/prometheus/rules/vtryon.yaml:ro" in mounted
    assert config["rule_files"] == ["/etc/prometheus/rules/*.yaml"]


def test_an_envoy_gives_its_figures_and_nothing_else_of_its_admin_interface(tmp_path: Path) -> None:
    admin, edge_address, metrics = (Address("127.0.0.1", port) for port in free_ports(3))
    place = EdgePlace(admin, edge_address, {}, None, None, metrics=metrics)
    with running_envoy(render_edge(Mesh.load(), place), tmp_path):
        told = httpx.get(f"http://{metrics}/stats/prometheus", trust_env=False)
        assert "envoy_server_live 1" in re.sub(r"\{[^}]*\}", "", told.text)
        for path in ("/quitquitquit", "/config_dump", "/stats/prometheus/../../config_dump"):
            answer = httpx.post(f"http://{metrics}{path}", trust_env=False)
            assert answer.status_code == 404


def test_grafana_shows_the_dashboards() -> None:
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    provider = yaml.safe_load((ROOT / "mesh" / "compose" / "dashboards.yaml").read_text())
    shown = [one["options"]["path"] for one in provider["providers"]]
    assert mounted["./helm/vtryon/dashboards"] in shown
    assert list((ROOT / "helm" / "vtryon" / "dashboards").glob("*.json"))


def test_stages_and_triton_see_the_models() -> None:
    for name in ("latent-encoder", "text-encoder", "sampling", "decoding", "triton"):
        assert "${VTRYON_MODELS:-models}:/models:ro" in SERVICES[name]["volumes"], name


def test_the_keys_that_sign_are_in_no_process_but_one() -> None:
    holding = [
        name
        for name, service in SERVICES.items()
        if any(volume.startswith("authority:") for volume in service.get("volumes", ()))
    ]
    assert holding == ["certificates"]


def test_the_envoy_of_the_image_is_the_one_that_is_tested() -> None:
    done = subprocess.run([find_envoy(), "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"/(\d+\.\d+\.\d+)/", done.stdout)[1]
    images = {one["image"] for one in SERVICES.values() if "envoyproxy" in one["image"]}
    assert images == {f"envoyproxy/envoy:v{version}"}


def copied(folder: Path) -> None:
    """Do what the Dockerfile's first stage does before it builds: copy files, and nothing more."""
    text = (ROOT / "services" / "Dockerfile").read_text()
    stage = text.partition(" AS wheel\n")[2].partition("\nRUN pip wheel")[0]
    for line in re.findall(r"^COPY (.*)$", stage, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            assert in_context(source), f".dockerignore keeps {source} out of the build"
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / target, ignore=BYTECODE)
            else:
                shutil.copy(ROOT / source, folder / target)


BYTECODE = shutil.ignore_patterns("__pycache__")


def in_context(path: str) -> bool:
    """Tell whether .dockerignore lets a file of the root into the build: its last match counts."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#") and fnmatch(path, pattern.lstrip("!")):
            kept = pattern.startswith("!")
    return kept


def test_every_file_that_the_dockerfile_copies_is_in_the_build_context() -> None:
    text = (ROOT / "services" / "Dockerfile").read_text()
    lines = [line.split() for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)]
    sources = {source for *sources, _ in lines for source in sources}
    assert {"protos", "constraints.txt"} <= sources
    assert [source for source in sorted(sources) if not in_context(source)] == []
    assert not in_context(".git")
    assert not in_context("tests")


def test_the_image_has_all_that_its_wheel_is_made_of(tmp_path: Path) -> None:
    copied(tmp_path)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], project["project"]["readme"]]
    needed += project["project"]["license-files"]
    assert [path for path in needed if not (tmp_path / path).exists()] == []


@pytest.mark.bare
def test_the_wheel_is_made_from_what_the_image_has(tmp_path: Path) -> None:
    copied(tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path / "out"]
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [made] = (tmp_path / "out").glob("*.whl")
    names = zipfile.ZipFile(made).namelist()
    assert {"vtryon_mesh/mesh.yaml", "vtryon_mesh/local/child.py"} <= set(names)
    assert any(name.startswith("vtryon_services/bridges/kafka/schemas/") for name in names)


def test_mounted_files_exist_and_images_have_versions() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith(("./mesh", "./helm")):
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
