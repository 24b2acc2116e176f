"""A real Triton server for tests, on a repository exported from the shipped checkpoint."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.triton.export import Options, export
from vtryon_services.triton.server import Installation, Running, serve

ROOT = Path(__file__).parents[2]


def installation() -> Installation:
    """The server that `make triton` installs; SettingsError where there is none."""
    return Installation.find(ROOT / ".triton")


def export_shipped(folder: Path, **options: object) -> Path:
    export(Checkpoint.open(SHIPPED_CHECKPOINT), folder, Options(**options))
    return folder


@contextmanager
def triton_server(repository: Path, log: Path, **options: int) -> Iterator[Running]:
    with serve(repository, installation=installation(), log=log, **options) as running:
        running.wait_until_ready(240)  # four models that import torch, beside other tests
        yield running


def models_of(running: Running) -> dict[str, int]:
    """The processes of the server's models, by model."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == running.process.pid and b"stub" in words[0]:
            found[Path(words[1].decode()).parents[1].name] = int(folder.name)
    return found


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill(running: Running) -> None:
    os.kill(running.process.pid, signal.SIGKILL)
