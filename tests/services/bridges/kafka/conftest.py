from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.kafka import Kafka, kafka_and_registry
from tests.support.processes import ServedMesh, served


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kafka")


@pytest.fixture(scope="package")
def kafka_servers(folder: Path) -> Iterator[Kafka]:
    with kafka_and_registry(folder) as servers:
        yield servers


@pytest.fixture(scope="package")
def office(folder: Path) -> Iterator[ServedMesh]:
    """All stages without a model, and jobs that are published; a process."""
    with served(
        *("all", "jobs", "--backend", "scripted"),
        VTRYON_SAMPLING_SCRIPTED_SECONDS="0.005",
        VTRYON_JOBS_OUTBOX="true",
        VTRYON_JOBS_DATABASE_URL=f"sqlite:///{folder / 'jobs.sqlite'}",
        VTRYON_JOBS_ARTIFACTS_URL=str(folder / "artifacts"),
        VTRYON_JOBS_RETRY_SECONDS="0.1",
    ) as mesh:
        yield mesh


@pytest.fixture(scope="package")
def kafka(kafka_servers: Kafka, office: ServedMesh, folder: Path) -> Iterator[Kafka]:
    """The bridge for whole jobs, by the ledger."""
    kafka = replace(kafka_servers, prefix="hybrid")
    kafka.create_topics()
    given = {"pipeline_target": office.target, "claims_url": str(folder / "claims")}
    with served("kafka", **kafka.variables(**given)):
        yield kafka


@pytest.fixture(scope="package")
def chain(kafka_servers: Kafka, office: ServedMesh, folder: Path) -> Iterator[Kafka]:
    """The bridge for stages, and for try-ons that go from one to the next."""
    kafka = replace(kafka_servers, prefix="chain")
    kafka.create_topics()
    given = {"pipeline_target": office.target, "claims_url": str(folder / "claims")}
    with served("kafka", **kafka.variables(serves="all", topology="kafka", **given)):
        yield kafka
