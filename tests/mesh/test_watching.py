"""Alert rules and dashboards: promtool reads them, and every metric in them exists."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from tests.mesh.conftest import Town
from tests.support.kafka import Kafka
from tests.support.mesh import free_ports
from tests.support.processes import served

import vtryon

HELM = Path(__file__).parents[2] / "helm" / "vtryon"
ALERTS = HELM / "alerts" / "vtryon.yaml"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="no promtool: apt-get install prometheus")


def expressions() -> list[str]:
    board = json.loads((HELM / "dashboards" / "vtryon.json").read_text())
    shown = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    return shown + [rule["expr"] for rule in rules]


def promtool(*words: str | Path) -> None:
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts_go_off_when_they_should() -> None:
    promtool("check", "rules", ALERTS)
    promtool("test", "rules", ALERTS.with_name("vtryon.test.yaml"))


@needs_promtool
def test_every_panel_can_be_computed(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": one} for n, one in enumerate(expressions())]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", path)


@needs_promtool
async def test_prometheus_takes_what_up_writes_for_it(town: Town) -> None:
    promtool("check", "config", town.layout.folder / "prometheus.yml")


async def test_every_metric_in_them_exists(town: Town, caller, example) -> None:
    """The engine's are those of a process with a model; Envoy's, those of the edge."""

    def fetch(address: str) -> str:
        with urllib.request.urlopen(f"http://{address}", timeout=5) as answer:
            return answer.read().decode()

    [edge] = [one for one in town.layout.processes if one.name == "edge"]
    texts = [await asyncio.to_thread(fetch, edge.metrics)]
    [port] = free_ports(1)
    free = f"127.0.0.1:{port}"
    with served("all", VTRYON_PROMETHEUS_LISTEN=free) as process:
        async with vtryon.Client(process.target) as client:
            await client.try_on(example.person, example.garment, steps=1)
        texts.append(await asyncio.to_thread(fetch, f"{free}/metrics"))
    await caller.jobs.wait((await caller.jobs.create(b"person", b"garment", steps=1)).id)
    await asyncio.sleep(5.5)  # jobs are counted every five seconds
    places = {process.name: process.health for process in town.layout.processes}
    kafka = Kafka(places["broker"], places["registry"], prefix="vtryon")
    await kafka.send_raw("jobs.requests", (b"poison", b"poison"))
    await kafka.messages("jobs.dlq", 1)
    for name in ("jobs", "rest", "kafka"):
        [one] = [one for one in town.layout.processes if one.name == name]
        if name == "rest":
            with contextlib.suppress(urllib.error.HTTPError):
                await asyncio.to_thread(fetch, f"{one.health}/v1/jobs/none")
        texts.append(await asyncio.to_thread(fetch, one.metrics))
    known = {name for text in texts for name in re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)}
    known |= {f"{name}_{part}" for name in known for part in ("count", "bucket", "sum")}
    # Are there once a preview was dropped, or a message had to wait.
    known |= {"vtryon_previews_dropped_total", "vtryon_kafka_waits_total"}
    used = set()
    for expression in expressions():
        bare = re.sub(r"vtryon:\w+:\w+|\([\w, ]+\)", "", expression)
        used |= set(re.findall(r"\b((?:vtryon|rpc|envoy|http)_\w+)", bare))
    labels = {"rpc_service", "rpc_grpc_status_code", "envoy_cluster_name"}
    labels |= {"http_response_status_code", "http_route"}
    assert used - labels - known == set()
