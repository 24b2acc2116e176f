"""`vtryon up` as a person starts it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tests.support.kafka import Kafka, job_request
from tests.support.processes import VTRYON, ServedMesh

import vtryon
from vtryon import extras
from vtryon.errors import SettingsError
from vtryon_mesh.description import Mesh
from vtryon_mesh.envoy.pieces import Address
from vtryon_mesh.local import child
from vtryon_mesh.local.folder import check, claim
from vtryon_mesh.local.layout import UpOptions
from vtryon_mesh.local.planning import lay_out
from vtryon_mesh.local.services import choose


@pytest.fixture
def up(tmp_path: Path):
    started: list[subprocess.Popen] = []

    def start(*options: str, **given: str) -> ServedMesh:
        folder = ("--folder", str(tmp_path / "mesh"))
        command = [VTRYON, "up", "--free-ports", "--backend", "scripted", *folder, *options]
        variables = {**os.environ, "VTRYON_DRAIN_DELAY_SECONDS": "0", **given}
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


def kafka_of(said: str) -> Kafka:
    """Broker and registry at the addresses that the command has printed."""
    places = re.search(
        r"^export VTRYON_KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:(\d+) "
        r"VTRYON_KAFKA_REGISTRY_URL=http://127.0.0.1:(\d+) ",
        said,
        re.MULTILINE,
    )
    broker, registry = (SimpleNamespace(port=int(port)) for port in places.groups())
    return Kafka(broker, registry, prefix="vtryon")


async def a_job_by_kafka(said: str, request_id: str) -> None:
    """A job by plain aiokafka and fastavro, at the addresses that the command has printed."""
    kafka = kafka_of(said)
    request = job_request(request_id, b"person", b"garment", steps=1)
    await kafka.send("jobs.requests", "job_request", request, correlation_id="c-1")
    [answer] = await kafka.answers("jobs.responses", request_id)
    assert kafka.read(answer.value)["state"] == "SUCCEEDED"
    assert dict(answer.headers)["correlation-id"] == b"c-1"


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_until_gone(pids: list[int], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.1)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGTERM], [signal.SIGHUP], [signal.SIGKILL], [signal.SIGINT, signal.SIGINT]],
    ids=["told to end", "terminal closed", "killed", "interrupted twice"],
)
def test_however_it_ends_nothing_is_left(tmp_path: Path, numbers: list[int]) -> None:
    """The service's delay before it drains would outlast the test if it were waited for."""
    command = [VTRYON, "up", "--stages", "decoding", "--backend", "scripted", "--free-ports"]
    delay = "300" if len(numbers) > 1 else "0"
    process = subprocess.Popen(
        [*command, "--mtls", "--folder", tmp_path / "a mesh"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "VTRYON_DRAIN_DELAY_SECONDS": delay},
    )
    for line in process.stderr:
        if line.startswith("ready"):
            break
    below = children(process.pid)
    assert len(below) == 3  # supervisord, the service and its Envoy
    for number in numbers:
        process.send_signal(number)
        if number is not numbers[-1]:
            while "draining" not in process.stderr.readline():
                pass
    process.wait(60)
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    wait_until_gone(below)


def test_a_process_whose_supervisor_is_killed_ends(tmp_path: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True
    )
    child = int(started.stdout.readline())
    assert alive(child)
    started.kill()
    started.wait(10)
    started.stdout.close()
    wait_until_gone([child])


CHILD = Path(child.__file__)
PARENT = """
import subprocess, sys, time
command = ["sh", "-c", "echo $$; exec sleep 600"]
subprocess.Popen([sys.executable, "-I", sys.argv[1], *command])
time.sleep(600)
"""


@pytest.mark.timeout(180)
async def test_with_mutual_tls_and_tokens_the_words_it_prints_work(up, tmp_path) -> None:
    mesh = up("--mtls", "--tokens", "--kafka", "--certificate-days", f"{60 / 86_400:.5f}")
    await a_job_by_kafka("".join(mesh.log), "order-1")
    run_printed_kafka_commands("".join(mesh.log))
    run_printed_try_on("".join(mesh.log), tmp_path)
    mesh.wait_for("renewed: edge, pipeline")
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


def run_printed_kafka_commands(said: str) -> None:
    """Check topics and list dead letters after the line that is printed, as it stands."""
    [exports] = re.findall(r"^export .*$", said, re.MULTILINE)
    commands = f"{exports}\n{VTRYON} kafka topics check && {VTRYON} dlq list jobs"
    done = subprocess.run(["bash", "-c", commands], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "topics hold" in done.stderr


def run_printed_try_on(said: str, folder: Path) -> None:
    """Run the command that is printed behind "try:" as it stands, beside two pictures."""
    for name in ("person.png", "garment.png"):
        Image.new("RGB", (96, 128), "white").save(folder / name)
    [command] = re.findall(r"^try: (.*)$", said, re.MULTILINE)
    path = f"{VTRYON.parent}:{os.environ['PATH']}"
    subprocess.run(
        command, shell=True, cwd=folder, check=True, timeout=60, env={**os.environ, "PATH": path}
    )
    assert (folder / "result.png").exists()


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
    assert not (tmp_path / "mesh").exists()  # ports come first


def test_its_own_leftover_is_used_again_and_its_data_stay(tmp_path: Path) -> None:
    mesh = tmp_path / "mesh"
    check(mesh)
    claim(mesh)
    data = ("jobs.sqlite", "jobs.sqlite-wal", "jobs/a/b.png", "claims/c", "schemas.json")
    rebuilt = (
        "token",
        "edge.yaml",
        "rest-envoy.yaml",
        "supervisor.sock",
        "supervisord.pid",
        "certificates/ca.crt",
    )
    for round_ in ("first", "second"):
        for name in (*data, *rebuilt, "logs/old.log"):
            (mesh / name).parent.mkdir(parents=True, exist_ok=True)
            (mesh / name).write_text(round_)
        check(mesh)
        claim(mesh)
        assert [(mesh / name).read_text() for name in data] == [round_] * len(data)
        assert not any((mesh / name).exists() for name in rebuilt)
        assert not (mesh / "logs").exists()
        assert (mesh / "logs.previous" / "old.log").read_text() == round_
    assert mesh.stat().st_mode & 0o077 == 0
    check(mesh)


@pytest.mark.timeout(240)
async def test_a_job_outlives_the_mesh_and_is_published_to_the_next_broker(up, tmp_path) -> None:
    own = {"VTRYON_JOBS_DATABASE_URL": f"sqlite:///{tmp_path}/own.sqlite"}
    stages = ("--stages", "pipeline,latent-encoder,text-encoder,sampling,decoding,jobs")
    mesh = up(*stages, VTRYON_JOBS_OUTBOX="true", **own)
    async with vtryon.Client(mesh.target) as client:
        job = await client.jobs.create(b"person", b"garment", request_id="order-0", steps=1)
        await client.jobs.wait(job.id)
        drawn = await client.jobs.picture(job.id)
    assert (tmp_path / "own.sqlite").exists()
    assert not (tmp_path / "mesh" / "jobs.sqlite").exists()
    mesh.process.send_signal(signal.SIGTERM)
    assert mesh.process.wait(60) == 0
    mesh = up("--kafka", *stages, **own)
    run_printed_kafka_commands("".join(mesh.log))
    async with vtryon.Client(mesh.target) as client:
        assert (await client.jobs.picture(job.id)).data == drawn.data
    [answer] = await kafka_of("".join(mesh.log)).answers("jobs.responses", "order-0")
    assert answer.value


def environment(monkeypatch: pytest.MonkeyPatch, folder: Path, **given: str) -> dict[str, str]:
    """All variables that services of a mesh get, in addition to those that are given."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    mesh = Mesh.load()
    wanted = UpOptions(list(mesh.services), {}, "scripted", otlp=Address("127.0.0.1", 4317))
    layout = lay_out(mesh, wanted, folder)
    return {k: v for one in layout.processes for k, v in one.environment.items()}


@pytest.mark.parametrize(
    "name",
    [
        "VTRYON_JOBS_DATABASE_URL",
        "VTRYON_JOBS_ARTIFACTS_URL",
        "VTRYON_SAMPLING_BACKEND",
        "VTRYON_SAMPLING_OTLP_ENDPOINT",
        "VTRYON_REST_ALLOWED_HOSTS",
        "VTRYON_KAFKA_CLAIMS_URL",
        "VTRYON_KAFKA_SERVES",
        "VTRYON_KAFKA_CREATE_TOPICS",
    ],
)
def test_a_variable_of_the_user_comes_before_what_up_sets(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name in environment(monkeypatch, tmp_path)
    assert name not in environment(monkeypatch, tmp_path, **{name: "own"})


def test_a_folder_of_the_user_has_the_database_and_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = environment(monkeypatch, tmp_path, VTRYON_JOBS_DATA_FOLDER="own")
    assert not {"VTRYON_JOBS_DATABASE_URL", "VTRYON_JOBS_ARTIFACTS_URL"} & set(found)


@pytest.mark.parametrize(
    "name",
    [
        "VTRYON_JOBS_PIPELINE_TARGET",
        "VTRYON_REST_JOBS_TARGET",
        "VTRYON_SAMPLING_LISTEN",
        "VTRYON_LISTEN",
        "VTRYON_PROMETHEUS_LISTEN",
        "VTRYON_SAMPLING_PROMETHEUS_LISTEN",
        "VTRYON_KAFKA_BOOTSTRAP_SERVERS",
        "VTRYON_KAFKA_REGISTRY_URL",
        "VTRYON_KAFKA_IDEMPOTENT",
        "VTRYON_JOBS_OUTBOX",
    ],
)
def test_a_variable_that_up_must_choose_is_refused_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=f"^{name} is set") as caught:
        environment(monkeypatch, tmp_path, **{name: "user:secret@127.0.0.1:1"})
    assert "secret" not in str(caught.value)


def test_a_refused_variable_is_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTRYON_JOBS_PIPELINE_TARGET", "127.0.0.1:1")
    said = refused("--free-ports", "--backend", "scripted", "--folder", str(tmp_path / "mesh"))
    assert said.startswith("error: VTRYON_JOBS_PIPELINE_TARGET is set")
    assert not (tmp_path / "mesh").exists()


@pytest.mark.parametrize(
    ("one", "value", "backend"),
    [
        ("VTRYON_SAMPLING_CHECKPOINT", "/models/mine", "triton"),
        ("VTRYON_CHECKPOINT", "/models/mine", "scripted"),
        ("VTRYON_SCRIPTED_SECONDS", "1", "torch"),
    ],
)
def test_a_variable_that_the_backend_does_not_read_is_exit_code_2(
    one: str, value: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(one, value)
    said = refused("--free-ports", "--backend", backend, "--folder", str(tmp_path / "mesh"))
    assert said.startswith(f"error: {one} is set, but the backend of ")
    assert not (tmp_path / "mesh").exists()


def test_the_short_backend_variable_is_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTRYON_BACKEND", "magic")
    assert "--backend magic" in refused()


def test_what_is_not_installed_is_left_out_or_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"jobs": ("alembic",), "rest": (), "base": (), "kafka": ()}
    monkeypatch.setattr(extras, "absent_packages", lambda extra: absent[extra])
    mesh = Mesh.load()
    chosen = choose([], mesh, "scripted", kafka=False)
    assert chosen.left_out == ["jobs"]
    assert set(chosen.services) == set(mesh.services) - {"jobs", "kafka"}
    assert chosen.install == "pip install 'vtryon[jobs]'"
    with pytest.raises(SettingsError, match=r"service jobs needs .*alembic.*vtryon\[jobs\]"):
        choose(["pipeline", "jobs"], mesh, "scripted", kafka=False)
    absent["base"] = ("pydantic",)
    with pytest.raises(SettingsError, match=r"vtryon\[base\]"):
        choose([], mesh, "scripted", kafka=False)
