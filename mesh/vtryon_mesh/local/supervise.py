"""Keep the processes of a mesh running, by supervisord."""

from __future__ import annotations

import configparser
import http.client
import json
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from supervisor.xmlrpc import SupervisorTransport

from vtryon.errors import SettingsError
from vtryon_mesh.local.layout import ENVOY_READY, MeshLayout, Process

_STOP_SECONDS = 45  # what a service gets to drain, and a little more
# Ends a process with its parent.
_CHILD = (sys.executable, "-I", str(Path(__file__).with_name("child.py")))
_GIVE_UP_AFTER = 20  # starts in a row that end at once; each waits a second longer


@dataclass(frozen=True, slots=True)
class Status:
    """How a process is: its state as supervisord says it, and whether it does its work."""

    process: Process
    state: str
    pid: int
    up_seconds: float
    restarts: int
    healthy: bool


class Supervisor:
    """A running supervisord with a layout's processes."""

    def __init__(self, layout: MeshLayout, daemon: subprocess.Popen[bytes]) -> None:
        self._layout = layout
        self._daemon = daemon
        self._pids: dict[str, int] = {}
        self._restarts: dict[str, int] = {}
        self._transport = SupervisorTransport(serverurl=f"unix://{_path(layout.folder)}")
        proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=self._transport)
        self._rpc: Any = proxy.supervisor

    @property
    def alive(self) -> bool:
        """Whether supervisord itself runs."""
        return self._daemon.poll() is None

    def statuses(self) -> list[Status]:
        """Ask how every process is."""
        try:
            told = {one["name"]: one for one in self._rpc.getAllProcessInfo()}
        except (OSError, http.client.HTTPException):
            told = {}
        return [self._status(process, told.get(process.name)) for process in self._layout.processes]

    def close(self) -> None:
        """Close the connection to supervisord."""
        self._transport.close()

    def restart(self, name: str) -> None:
        """Stop a process, as its end would, and start it anew."""
        process = next(one for one in self._layout.processes if one.name == name)
        self._rpc.stopProcess(f"{_group(process)}:{name}", True)
        self._rpc.startProcess(f"{_group(process)}:{name}", True)

    def _status(self, process: Process, told: dict[str, Any] | None) -> Status:
        if told is None:
            return Status(process, "STARTING", 0, 0.0, 0, healthy=False)
        name, pid = process.name, told["pid"]
        if pid and self._pids.get(name) != pid:
            if name in self._pids:
                self._restarts[name] = self._restarts.get(name, 0) + 1
            self._pids[name] = pid
        state = told["statename"]
        healthy = state == "RUNNING" and is_healthy(process)
        up = told["now"] - told["start"] if pid else 0.0
        return Status(process, state, pid, up, self._restarts.get(name, 0), healthy)


def refuse_taken_ports(layout: MeshLayout) -> None:
    """Check that every process can listen.

    Raises:
        SettingsError: ports are already in use; names each.
    """
    taken = [f"{address} ({name})" for address, name in layout.taken_ports()]
    if taken:
        raise SettingsError(
            f"ports already in use: {', '.join(taken)}. Stop that, or say --free-ports"
        )


@contextmanager
def supervised(layout: MeshLayout) -> Iterator[Supervisor]:
    """Run a layout's processes until the block is left; then each is stopped, callers first.

    A signal while they are stopped ends them at once.

    Raises:
        SettingsError: ports are taken.
    """
    refuse_taken_ports(layout)
    (layout.folder / "logs").mkdir(parents=True, exist_ok=True)
    layout.write()
    path = layout.folder / "supervisord.conf"
    with path.open("w") as file:
        _configure(layout).write(file)
    daemon = subprocess.Popen(  # noqa: S603
        [*_CHILD, sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "-c", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a Ctrl-C is for us, who tell it when to stop
    )
    try:
        _wait_for_socket(layout, daemon)
        supervisor = Supervisor(layout, daemon)
        try:
            yield supervisor
        finally:
            supervisor.close()
    finally:
        _stop(daemon, len(layout.processes) * _STOP_SECONDS)


def _stop(daemon: subprocess.Popen[bytes], seconds: float) -> None:
    """Have supervisord stop its processes; a second signal to us kills it.

    Its processes then get a signal for its end, which for those that drain is their second one.
    """
    daemon.terminate()
    try:
        daemon.wait(seconds)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        daemon.kill()
        daemon.wait()


def is_running(folder: Path) -> bool:
    """Whether a supervisord answers in a folder."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(_path(folder))
        except OSError:
            return False
    return True


def is_healthy(process: Process) -> bool:
    """Ask a process whether it does its work."""
    if process.grpc is None:
        if process.ready is None:
            return _listens(process)
        if _fetch(process, process.ready) is None:
            return False
        clusters = process.ready == ENVOY_READY and _fetch(process, "clusters?format=json")
        return clusters is False or _sees_somebody(clusters)
    with grpc.insecure_channel(str(process.health)) as channel:
        ask = health_pb2.HealthCheckRequest(service=process.grpc)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(ask, timeout=1)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _listens(process: Process) -> bool:
    try:
        with socket.create_connection((process.health.host, process.health.port), timeout=1):
            return True
    except OSError:
        return False


def _fetch(process: Process, path: str) -> bytes | None:
    try:
        with urllib.request.urlopen(f"http://{process.health}/{path}", timeout=1) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, OSError):
        return None


def _sees_somebody(clusters: bytes | None) -> bool:
    """Whether an Envoy knows of a well replica of every service that it calls."""
    if clusters is None:
        return False
    return all(
        any(
            not host.get("health_status", {}).get("failed_active_health_check")
            for host in cluster.get("host_statuses", ())
        )
        for cluster in json.loads(clusters).get("cluster_statuses", ())
    )


def _configure(layout: MeshLayout) -> configparser.RawConfigParser:
    folder = layout.folder
    config = configparser.RawConfigParser()
    config["supervisord"] = {
        "logfile": str(folder / "logs" / "supervisord.log"),
        "pidfile": str(folder / "supervisord.pid"),
        "childlogdir": str(folder / "logs"),
    }
    config["unix_http_server"] = {"file": _path(folder), "chmod": "0600"}
    factory = "supervisor.rpcinterface:make_main_rpcinterface"
    config["rpcinterface:supervisor"] = {"supervisor.rpcinterface_factory": factory}
    for process in layout.processes:
        variables = [f'{name}="{_escape(value)}"' for name, value in process.environment.items()]
        config[f"program:{process.name}"] = {
            "command": _escape(shlex.join([*_CHILD, *process.command])),
            "environment": ",".join(variables),
            "autorestart": "true",
            "startsecs": "1",
            "startretries": str(_GIVE_UP_AFTER),
            "stopwaitsecs": str(_STOP_SECONDS),
            "redirect_stderr": "true",
            "stdout_logfile": str(folder / "logs" / f"{process.name}.log"),
            "stdout_logfile_maxbytes": "50MB",
            "stdout_logfile_backups": "2",
        }
    # A group's processes stop at once, one group after another: callers first.
    for priority in sorted({process.priority for process in layout.processes}):
        members = [process for process in layout.processes if process.priority == priority]
        config[f"group:{_group(members[0])}"] = {
            "programs": ",".join(process.name for process in members),
            "priority": str(priority),
        }
    return config


def _group(process: Process) -> str:
    return f"at-{process.priority}"


def _wait_for_socket(layout: MeshLayout, daemon: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 10
    while not Path(_path(layout.folder)).exists():
        if daemon.poll() is not None or time.monotonic() > until:
            raise SettingsError(
                f"supervisord did not start: see {layout.folder / 'logs' / 'supervisord.log'}"
            )
        time.sleep(0.05)


def _escape(text: str) -> str:
    return text.replace("%", "%%")


def _path(folder: Path) -> str:
    return str(folder / "supervisor.sock")
