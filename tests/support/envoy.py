"""An Envoy of a test's own."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vtryon_mesh.documents import write
from vtryon_mesh.envoy.pieces import Config
from vtryon_mesh.validate import find_envoy

OPTIONS = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "error")


@contextmanager
def running_envoy(config: Config, folder: Path, seconds: float = 60) -> Iterator[None]:
    """Run an Envoy until the block is left; in the block it has begun to serve."""
    path = folder / "envoy.yaml"
    path.write_text(write(config))
    place = config["admin"]["address"]["socket_address"]
    url = f"http://{place['address']}:{place['port_value']}/ready"
    process = subprocess.Popen([find_envoy(), "-c", path, *OPTIONS])
    try:
        until = time.monotonic() + seconds
        while not _answers(url):
            assert process.poll() is None, "Envoy has ended"
            assert time.monotonic() < until, "Envoy is not ready"
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
