"""The services' checks for `vtryon doctor`: backends, Triton, jobs, Kafka."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

from vtryon import extras
from vtryon.catalog import JOBS
from vtryon.checkpoint_source import HubRepository, parse_source
from vtryon.checks import Finding
from vtryon.errors import SettingsError
from vtryon.types import Stage

_CONNECT_SECONDS = 2.0


def backends() -> Iterator[Finding]:
    """Check the backends of the stages, the device, and the shipped checkpoint."""
    yield Finding("backend scripted", True, "always")
    try:
        import torch

        from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
    except ImportError as error:
        remedy = extras.install_command(["server"])
        yield Finding("backend torch", False, str(error), True, remedy)
        return
    threads = f"{torch.get_num_threads()} CPU threads"
    yield Finding("backend torch", True, f"{torch.__version__}, {threads}", True)
    if torch.cuda.is_available():
        yield Finding("device cuda", True, torch.cuda.get_device_name(0))
    else:
        yield Finding("device cuda", False, "no GPU that torch can use", remedy="runs on the CPU")
    try:
        digest = Checkpoint.open(SHIPPED_CHECKPOINT).digest(Stage.SAMPLING)
        yield Finding("checkpoint mannequin", True, f"sha256 {digest[:12]}", True)
    except SettingsError as error:
        yield Finding("checkpoint mannequin", False, str(error), True, "install vtryon again")
    if text := os.environ.get("VTRYON_CHECKPOINT"):
        yield _checkpoint(text)


def _checkpoint(text: str) -> Finding:
    """Look for the checkpoint that is set; a hub's repository is not downloaded for that."""
    from vtryon_services.engine.checkpoint import Checkpoint
    from vtryon_services.engine.hub import cached

    name = "checkpoint of VTRYON_CHECKPOINT"
    try:
        source = parse_source(text)
        folder = cached(source) if isinstance(source, HubRepository) else source
        if folder is None:
            found = f"{source} is not whole in the hub's cache"
            return Finding(name, False, found, remedy="the first start downloads it")
        Checkpoint.open(folder)
    except SettingsError as error:
        return Finding(name, False, error.message, remedy="set VTRYON_CHECKPOINT to another one")
    return Finding(name, True, f"{source} can be opened")


def triton() -> Iterator[Finding]:
    """Check for the server that `vtryon triton up` starts, and for VTRYON_TRITON_URL."""
    from vtryon_services.triton.server import Installation

    try:
        yield Finding("tritonserver", True, str(Installation.find().program))
    except SettingsError as error:
        remedy = "for --backend triton: `make triton`, or NVIDIA's container"
        yield Finding("tritonserver", False, error.message, remedy=remedy)
    if urls := os.environ.get("VTRYON_TRITON_URL"):
        yield from _reachable("triton", urls, "VTRYON_TRITON_URL")


def jobs() -> Iterator[Finding]:
    """Check the database of jobs, as `vtryon serve jobs` would open it."""
    if extras.missing(extras.of_service(JOBS)):
        remedy = extras.install_command(extras.of_service(JOBS))
        yield Finding("jobs database", False, "the extra jobs is not installed", remedy=remedy)
        return
    from vtryon_services.jobs.database import read_url
    from vtryon_services.jobs.settings import JobsSettings

    try:
        settings = JobsSettings.load()
        url = read_url(settings.database_url, settings.folder)
    except SettingsError as error:
        yield Finding("jobs database", False, str(error), remedy="set VTRYON_JOBS_DATABASE_URL")
        return
    if url.get_backend_name() == "sqlite":
        yield Finding("jobs database", True, f"SQLite in {url.database}")
        return
    address = f"{url.host or 'localhost'}:{url.port or 5432}"
    yield from _reachable("jobs database", address, "VTRYON_JOBS_DATABASE_URL")


def kafka() -> Iterator[Finding]:
    """Check for the broker that `vtryon kafka broker` starts, and for the one that is set."""
    from vtryon_services.bridges.kafka.broker import find_broker

    try:
        yield Finding("broker for one machine", True, find_broker())
    except SettingsError as error:
        remedy = extras.install_command(["broker"])
        yield Finding("broker for one machine", False, error.message, remedy=remedy)
    if servers := os.environ.get("VTRYON_KAFKA_BOOTSTRAP_SERVERS"):
        yield from _reachable("kafka", servers, "VTRYON_KAFKA_BOOTSTRAP_SERVERS")


def _reachable(name: str, addresses: str, variable: str) -> Iterator[Finding]:
    for address in (one.strip() for one in addresses.split(",")):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            found = f"{address} is not reachable ({error})"
            yield Finding(name, False, found, remedy=f"start it, or set {variable}")
        else:
            yield Finding(name, True, f"{address} answers")
