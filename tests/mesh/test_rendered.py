"""What is committed is what would be rendered; Envoy takes it, and Istio's schemas do."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudcoil.models.istio.networking.v1 as networking
import cloudcoil.models.istio.networking.v1alpha3 as older
import cloudcoil.models.istio.security.v1 as security
import cloudcoil.models.istio.telemetry.v1 as telemetry
import pytest
import yaml
from tests.support.processes import VTRYON

from vtryon_mesh.description import Mesh
from vtryon_mesh.istio import render_istio
from vtryon_mesh.render import render

FOLDER = Path(__file__).parents[2] / "mesh"
MESH = Mesh.load()
KINDS = {
    "AuthorizationPolicy": security.AuthorizationPolicy,
    "PeerAuthentication": security.PeerAuthentication,
    "RequestAuthentication": security.RequestAuthentication,
    "EnvoyFilter": older.EnvoyFilter,
    "DestinationRule": networking.DestinationRule,
    "VirtualService": networking.VirtualService,
    "Telemetry": telemetry.Telemetry,
}


GATEWAY_API = {"Gateway", "GRPCRoute", "HTTPRoute"}
CHECK = """
import fs from "node:fs";
const { apiVersion, kind, ...rest } = JSON.parse(fs.readFileSync(0, "utf8"));
const kinds = await import(`@kubernetes-models/gateway-api/${apiVersion}`);
new kinds[kind](rest).validate();
"""


def test_the_committed_files_are_current() -> None:
    files = render(MESH)
    there = {
        path.relative_to(FOLDER)
        for top in ("envoy", "istio")
        for path in (FOLDER / top).rglob("*.yaml")
    }
    assert there == {Path(path) for path in files}
    for path, text in files.items():
        assert (FOLDER / path).read_text() == text, f"{path}: vtryon mesh render mesh"


def test_envoy_takes_them() -> None:
    done = subprocess.run([VTRYON, "mesh", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "9 configurations" in done.stdout


def test_what_envoy_does_not_take_is_said(tmp_path: Path) -> None:
    described = yaml.safe_load((FOLDER / "mesh.yaml").read_text())
    described["edge"]["cors_origins"] = ["(unclosed"]
    path = tmp_path / "mesh.yaml"
    path.write_text(yaml.safe_dump(described))
    command = [VTRYON, "mesh", "check", "--description", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unclosed" in done.stderr


def unknown(given: Any, read: Any, at: str = "") -> list[str]:
    """Fields that a schema let through because it does not know them."""
    if isinstance(given, dict):
        if not isinstance(read, dict):
            return [at]
        return [
            found
            for name, value in given.items()
            for found in (
                unknown(value, read[name], f"{at}.{name}") if name in read else [f"{at}.{name}"]
            )
        ]
    if isinstance(given, list):
        pairs = zip(given, read, strict=True)
        return [
            found
            for index, (one, other) in enumerate(pairs)
            for found in unknown(one, other, f"{at}[{index}]")
        ]
    return []


@pytest.mark.parametrize("mode", ["sidecar", "ambient"])
def test_istios_schemas_take_every_manifest(mode: str) -> None:
    checked = set()
    for manifests in render_istio(MESH, mode).values():
        for manifest in manifests:
            kind = KINDS.get(manifest["kind"])
            if kind is None:  # the Gateway API's are below
                assert manifest["kind"] in {"Namespace", *GATEWAY_API}
                continue
            read = kind.model_validate(manifest)
            dumped = read.model_dump(by_alias=True, exclude_unset=True, mode="json")
            assert unknown(manifest, dumped) == []
            checked.add(manifest["kind"])
    assert checked == set(KINDS)


@pytest.fixture(scope="module")
def gateway_api(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict], str]:
    """What the schemas of the Gateway API say to a manifest; nothing where it holds."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm here")
    folder = tmp_path_factory.mktemp("gateway-api")
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", folder]
    package = "@kubernetes-models/gateway-api@2.0.0"
    done = subprocess.run([*install, package], capture_output=True, text=True, timeout=100)
    if done.returncode:
        pytest.skip(f"npm has no {package}: {done.stderr[-200:]}")

    def check(manifest: dict) -> str:
        done = subprocess.run(
            ["node", "--input-type=module", "-e", CHECK],
            input=json.dumps(manifest),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.stderr

    return check


@pytest.mark.parametrize("mode", ["sidecar", "ambient"])
def test_the_gateway_apis_schemas_take_its_manifests(gateway_api, mode: str) -> None:
    checked = set()
    for manifests in render_istio(MESH, mode).values():
        for manifest in manifests:
            if manifest["kind"] in GATEWAY_API:
                assert gateway_api(manifest) == ""
                checked.add(manifest["kind"])
    assert checked == GATEWAY_API
    [gateway, *_] = render_istio(MESH, mode)["gateway.yaml"]
    gateway["spec"]["listeners"][0]["port"] = "https"
    assert "port" in gateway_api(gateway)


def test_a_field_that_istio_does_not_know_would_be_found() -> None:
    [manifest] = render_istio(MESH, "sidecar")["authentication.yaml"]
    manifest["spec"]["mtlss"] = {}
    read = security.PeerAuthentication.model_validate(manifest)
    dumped = read.model_dump(by_alias=True, exclude_unset=True, mode="json")
    assert unknown(manifest, dumped) == [".spec.mtlss"]


@pytest.mark.parametrize("mode", ["sidecar", "ambient"])
def test_istio_and_envoy_let_in_the_same_callers(mode: str) -> None:
    files = render_istio(MESH, mode)
    deny, *policies = files["authorization.yaml"]
    assert deny["spec"] == {}
    by_name = {one["metadata"]["name"]: one for one in policies}
    expected = {
        f"{name}-{title}": (paths, callers)
        for name, service in MESH.services.items()
        for title, (paths, callers) in service.allowed.items()
    }
    others = {name for name in by_name if name.endswith("-by-waypoint")}
    assert by_name.keys() - others == expected.keys()
    for title, (paths, callers) in expected.items():
        [rule] = by_name[title]["spec"]["rules"]
        accounts = [one.rpartition("/")[2] for one in rule["from"][0]["source"]["principals"]]
        assert [one.removesuffix("-istio") for one in accounts] == list(callers)
        assert rule["to"][0]["operation"]["paths"] == [f"{path}*" for path in paths]
    for manifest in files["traffic.yaml"]:
        for http in manifest["spec"].get("http", ()):
            assert set(http["retries"]["retryOn"].split(",")) <= {
                "connect-failure",
                "refused-stream",
                "reset-before-request",
            }


@pytest.mark.parametrize("mode", ["sidecar", "ambient"])
def test_istio_takes_mutual_tls_alone_from_everybody(mode: str) -> None:
    """No manifest of the mesh takes plain text, or asks for it, for any workload or port."""
    manifests = [one for many in render_istio(MESH, mode).values() for one in many]
    [mutual] = [one for one in manifests if one["kind"] == "PeerAuthentication"]
    assert mutual["metadata"]["namespace"] == MESH.namespace
    assert mutual["spec"] == {"mtls": {"mode": "STRICT"}}  # no selector: of the whole namespace
    rules = [one for one in manifests if one["kind"] == "DestinationRule"]
    assert not [one for one in rules if "tls" in one["spec"]["trafficPolicy"]]


@pytest.mark.parametrize("mode", ["sidecar", "ambient"])
def test_istio_sends_nothing_to_a_new_version_before_somebody_asks(mode: str) -> None:
    manifests = render_istio(MESH, mode)["traffic.yaml"]
    tracks = {
        one["spec"]["host"]: {each["name"]: each["labels"] for each in one["spec"]["subsets"]}
        for one in manifests
        if one["kind"] == "DestinationRule"
    }
    assert tracks.keys() == MESH.services.keys()
    seen = set()
    for manifest in manifests:
        for http in manifest["spec"].get("http", ()):
            shares = {
                tracks[one["destination"]["host"]][one["destination"]["subset"]][
                    "vtryon.io/track"
                ]: one["weight"]
                for one in http["route"]
            }
            assert shares == {"stable": 100, "canary": 0}
            assert http["mirrorPercentage"] == {"value": 0.0}
            seen |= {one["destination"]["host"] for one in http["route"]}
    assert seen == MESH.services.keys()
