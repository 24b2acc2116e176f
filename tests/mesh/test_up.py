"""`vtryon up` as a person starts it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.support.kafka import Kafka, job_request
from tests.support.processes import VTRYON, ServedMesh

import vtryon


@pytest.fixture
def up(tmp_path: Path):
    started: list[subprocess.Popen] = []

    def start(*options: str) -> ServedMesh:
        folder = ("--folder", str(tmp_path / "mesh"))
        command = [VTRYON, "up", "--free-ports", "--backend", "scripted", *folder, *options]
        variables = {**os.environ, "VTRYON_DRAIN_DELAY_SECONDS": "0"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables)
        started.append(process)
        return ServedMesh(process)

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        process.stderr.close()


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    own = [int(word) for word in path.read_text().split()] if path.exists() else []
    return own + [one for child in own for one in children(child)]


@pytest.mark.timeout(180)
async def test_it_says_when_it_is_ready_restarts_what_dies_and_leaves_nothing(up, tmp_path) -> None:
    mesh = up()
    async with vtryon.Client(mesh.target) as client:
        await client.try_on(b"person", b"garment", steps=1)
    below = children(mesh.process.pid)
    assert len(below) >= 1 + 5 + 1  # supervisord, five services, the edge
    victim = next(pid for pid in below if b"sampling" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(victim, signal.SIGKILL)
    mesh.wait_for(r"sampling: running, healthy")
    mesh.process.send_signal(signal.SIGINT)
    assert mesh.process.wait(60) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in below)
    assert not (tmp_path / "mesh" / "supervisor.sock").exists()


async def a_job_by_kafka(said: str) -> None:
    """A job by plain aiokafka and fastavro, at the addresses that the command has printed."""
    broker, registry = (
        SimpleNamespace(port=int(re.search(rf"^{name}: 127.0.0.1:(\d+)", said, re.MULTILINE)[1]))
        for name in ("broker", "registry")
    )
    kafka = Kafka(broker, registry, prefix="vtryon")
    request = job_request("order-1", b"person", b"garment", steps=1)
    await kafka.send("jobs.requests", "job_request", request, correlation_id="c-1")
    [answer] = await kafka.answers("jobs.responses", "order-1")
    assert kafka.read(answer.value)["state"] == "SUCCEEDED"
    assert dict(answer.headers)["correlation-id"] == b"c-1"


@pytest.mark.timeout(180)
async def test_with_mutual_tls_and_tokens_the_words_it_prints_work(up, tmp_path) -> None:
    mesh = up("--mtls", "--tokens", "--kafka")
    await a_job_by_kafka("".join(mesh.log))
    folder = tmp_path / "mesh"
    token = (folder / "token").read_text()
    assert (folder / "token").stat().st_mode & 0o077 == 0
    assert (folder / "certificates" / "edge.key").stat().st_mode & 0o077 == 0
    tls = vtryon.Tls(ca_path=folder / "certificates" / "ca.crt")
    async with vtryon.Client(mesh.target, tls=tls, token=token) as client:
        await client.try_on(b"person", b"garment", steps=1)
    async with vtryon.Client(mesh.target, tls=tls) as client:
        with pytest.raises(vtryon.AccessError):
            await client.try_on(b"person", b"garment", steps=1)
    second = subprocess.run(
        [VTRYON, "up", "--free-ports", "--folder", folder], capture_output=True, text=True
    )
    assert second.returncode == 2
    assert "runs in" in second.stderr


def refused(*options: str) -> str:
    done = subprocess.run([VTRYON, "up", *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    return " ".join(done.stderr.split())


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    folder = ("--folder", str(tmp_path / "mesh"))
    assert "no service tailor" in refused("--stages", "tailor", *folder)
    assert "--replicas sampling=many" in refused("--replicas", "sampling=many", *folder)
    assert "--backend magic" in refused("--backend", "magic", *folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").touch()
    assert "something else" in refused("--folder", str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "photo.png").exists()
    with socket.create_server(("127.0.0.1", 50053)):
        said = refused("--backend", "scripted", *folder)
    assert "127.0.0.1:50053 (sampling)" in said
