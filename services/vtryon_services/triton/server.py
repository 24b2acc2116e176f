"""A Triton server on this machine: tritonserver on PATH, or the one inside the pytriton wheel.

The wheel's server is for development and tests: it has the Python backend alone, and lacks the
security fixes of newer releases, so it listens on the loopback address only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vtryon.errors import SettingsError

WHEEL_FOLDER = ".triton"  # where `make triton` puts it
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver that can be started.

    Attributes:
        backends: folder of its backends; None for its own.
        libraries: folders of shared libraries that it needs.
    """

    program: Path
    backends: Path | None
    libraries: tuple[Path, ...]
    stub: Path | None

    @classmethod
    def find(cls, folder: Path | None = None) -> Installation:
        """Look on PATH, then in `folder`, by default `.triton` here.

        Raises:
            SettingsError: there is none, or none for this Python.
        """
        if folder is None and (found := shutil.which("tritonserver")):
            return cls(Path(found), None, (), None)
        root = (folder or Path(WHEEL_FOLDER)).resolve()
        server = root / "pytriton" / "tritonserver"
        if not (server / "bin" / "tritonserver").exists():
            raise SettingsError(
                f"no tritonserver on PATH, and none in {root.name}/: to install one, `make triton` "
                "or `pip install --no-deps --target .triton nvidia-pytriton==0.7.0`"
            )
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.exists():
            raise SettingsError(f"this tritonserver has no Python backend for Python {version}")
        libraries = (Path(sysconfig.get_config_var("LIBDIR")), root / "nvidia_pytriton.libs")
        return cls(server / "bin" / "tritonserver", server / "backends", libraries, stub)

    def prepare_backends(self, folder: Path) -> None:
        """Lay out a folder of backends, with this Python's process beside the Python backend."""
        assert self.backends is not None
        assert self.stub is not None
        python = folder / "python"
        python.mkdir()
        for path in (self.backends / "python").iterdir():
            if path.is_file():
                (python / path.name).symlink_to(path)
        stub = python / self.stub.name
        stub.unlink(missing_ok=True)
        shutil.copy(self.stub, stub)


@dataclass(slots=True)
class Running:
    """A server that has begun; `grpc` and `http` are host:port."""

    process: subprocess.Popen[bytes]
    grpc: str
    http: str
    log: Path

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until every model is loaded.

        Raises:
            SettingsError: it ended, or is not ready in time; the message has its last words.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise SettingsError(f"tritonserver ended: {self._last_words()}")
            try:
                with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise SettingsError(f"tritonserver is not ready after {seconds:g} s: {self._last_words()}")

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        failures = [line for line in lines if line.startswith("E") or "Error" in line]
        return "\n".join((failures or lines)[-12:])


@contextmanager
def serve(
    repository: Path,
    *,
    installation: Installation | None = None,
    grpc_port: int = 0,
    http_port: int = 0,
    metrics_port: int = 0,
    log: Path | None = None,
    cache_bytes: int = 0,
) -> Iterator[Running]:
    """Start a server on the loopback address; it and its leftovers end with the block.

    Ports of 0 are free ones; `cache_bytes` of 0 means no response cache. The models run in this
    Python's environment.

    Raises:
        SettingsError: there is no tritonserver.
    """
    found = installation or Installation.find()
    ports = [port or _free_port() for port in (grpc_port, http_port, metrics_port)]
    with tempfile.TemporaryDirectory(prefix="vtryon-triton-") as scratch:
        prefix = f"vtryon_{os.getpid()}_{ports[0]}_"  # tells its regions from another's
        command = _command(found, repository, ports, Path(scratch), prefix, cache_bytes)
        output = log or Path(scratch) / "server.log"
        with output.open("wb") as file:
            process = _start(command, found, file)
            try:
                yield Running(process, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", output)
            finally:
                _stop(process)
                for region in _SHARED_MEMORY.glob(f"{prefix}*"):
                    region.unlink(missing_ok=True)


def _command(
    found: Installation,
    repository: Path,
    ports: list[int],
    scratch: Path,
    prefix: str,
    cache_bytes: int,
) -> list[str]:
    command = [str(found.program), f"--model-repository={repository.resolve()}"]
    command += [f"--backend-config=python,shm-region-prefix-name={prefix}"]
    if found.backends is not None:
        backends = scratch / "backends"
        backends.mkdir()
        found.prepare_backends(backends)
        command.append(f"--backend-directory={backends}")
        command.append(f"--cache-directory={found.backends.parent / 'caches'}")
    if cache_bytes:
        command.append(f"--cache-config=local,size={cache_bytes}")
    for name, port in zip(("grpc", "http", "metrics"), ports, strict=True):
        command += [f"--{name}-port={port}", f"--{name}-address=127.0.0.1"]
    return [*command, "--exit-timeout-secs=5"]


def _start(command: list[str], found: Installation, file: IO[bytes]) -> subprocess.Popen[bytes]:
    libraries = [str(folder) for folder in found.libraries]
    if inherited := os.environ.get("LD_LIBRARY_PATH"):
        libraries.append(inherited)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "VIRTUAL_ENV": sys.prefix,
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        # The models are processes of their own: one that waits must not keep a core busy.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return subprocess.Popen(  # noqa: S603
        command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    with contextlib.suppress(ProcessLookupError):  # the models' processes are of its session
        os.killpg(process.pid, 9)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
