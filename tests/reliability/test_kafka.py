"""F13 to F17: broker and bridge die, the broker halts, the group changes, the registry is away.

One or two cycles each; twenty with `make chaos`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.dies import BRIDGE
from tests.support.kafka import (
    Kafka,
    inline,
    job_request,
    registry_process,
    schema,
    stored_broker,
    written,
)
from tests.support.pictures import png
from tests.support.processes import ServedMesh, served

import vtryon

PICTURE = png()


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedMesh]:
    """All stages without a model, and jobs that are published; a process."""
    folder = tmp_path_factory.mktemp("office")
    with served(
        *("all", "jobs", "--backend", "scripted"),
        VTRYON_JOBS_OUTBOX="true",
        VTRYON_JOBS_DATABASE_URL=f"sqlite:///{folder / 'jobs.sqlite'}",
        VTRYON_JOBS_ARTIFACTS_URL=str(folder / "artifacts"),
        VTRYON_JOBS_RETRY_SECONDS="0.1",
        VTRYON_SAMPLING_SCRIPTED_SECONDS="0.02",
    ) as mesh:
        yield mesh


class Load:
    """Sends requests, each until it is acknowledged; the same bytes each time."""

    def __init__(self, kafka: Kafka, run: str) -> None:
        self.kafka = kafka
        self.run = run
        self.acknowledged: list[str] = []
        self._schema = schema("job_request")
        self._id = kafka.register("jobs.requests", self._schema)

    @asynccontextmanager
    async def running(self, pause_seconds: float) -> AsyncIterator[None]:
        task = asyncio.create_task(self._send(pause_seconds))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _send(self, pause_seconds: float) -> None:
        async with self.kafka.producer() as producer:
            number = 0
            while True:
                name = f"{self.run}-{number}"
                value = written(
                    self._schema, self._id, job_request(name, PICTURE, PICTURE, steps=1)
                )
                try:
                    await producer.send_and_wait(
                        self.kafka.topic("jobs.requests"), value, key=name.encode()
                    )
                except Exception:
                    await asyncio.sleep(0.05)
                    continue
                self.acknowledged.append(name)
                number += 1
                await asyncio.sleep(pause_seconds)


async def states(kafka: Kafka, names: list[str], seconds: float = 60) -> dict[str, str]:
    answers = await kafka.answers("jobs.responses", *names, seconds=seconds)
    read = [kafka.read(one.value) for one in answers]
    return {one["request_id"]: one["state"] + describe(one["error"]) for one in read}


def describe(error: dict[str, Any] | None) -> str:
    return f": {error['reason']}, {error['message']}" if error else ""


@pytest.mark.timeout(600)
async def test_f13_a_broker_that_dies_loses_nothing_that_it_acknowledged(
    office: ServedMesh, tmp_path: Path, chaos: bool
) -> None:
    cycles = 20 if chaos else 2
    registry = registry_process(tmp_path / "schemas.json")
    with registry.running(), stored_broker(tmp_path) as broker:
        kafka = Kafka(broker, registry, prefix="f13")
        await asyncio.to_thread(kafka.create_topics)
        variables = kafka.variables(
            pipeline_target=office.target, claims_url=str(tmp_path / "claims")
        )
        with served("kafka", **variables):
            load = Load(kafka, "f13")
            resumed = []
            async with load.running(0.05):
                for _ in range(cycles):
                    await asyncio.sleep(1.0)
                    broker.kill()
                    await asyncio.sleep(0.2)
                    await asyncio.to_thread(broker.start)
                    started, before = time.monotonic(), len(load.acknowledged)
                    while len(load.acknowledged) == before:
                        await asyncio.sleep(0.02)
                    resumed.append(time.monotonic() - started)
            found = await states(kafka, load.acknowledged)
    assert set(found.values()) == {"SUCCEEDED"}
    assert found.keys() == set(load.acknowledged)
    assert len(found) > 5 * cycles
    assert max(resumed) < 2.0, resumed


@pytest.fixture
def kafka(kafka_servers: Kafka) -> Kafka:
    """The broker, with topics of the test's own."""
    kafka = replace(kafka_servers, prefix=f"f{uuid.uuid4().hex[:8]}")
    kafka.create_topics()
    return kafka


async def test_f14_a_broker_that_halts_loses_nothing_and_keeps_each_key_s_order(
    kafka: Kafka, office: ServedMesh, tmp_path: Path
) -> None:
    variables = kafka.variables(pipeline_target=office.target, claims_url=str(tmp_path / "claims"))
    asked = schema("job_request")
    schema_id = kafka.register("jobs.requests", asked)
    names = [f"{kafka.prefix}-{key}-{number}" for number in range(20) for key in "abc"]
    with served("kafka", **variables):
        async with kafka.producer() as producer:
            for number, name in enumerate(names):
                if number == 20:
                    kafka.broker.freeze()
                    asyncio.get_running_loop().call_later(1.5, kafka.broker.thaw)
                value = written(asked, schema_id, job_request(name, PICTURE, PICTURE, steps=1))
                key = name.rpartition("-")[0].encode()
                await producer.send_and_wait(kafka.topic("jobs.requests"), value, key=key)
        assert set((await states(kafka, names)).values()) == {"SUCCEEDED"}
    async with vtryon.Client(office.target) as client:
        jobs = [job async for job in client.jobs.list() if job.request_id in names]
    made = [job.request_id for job in reversed(jobs)]
    for key in "abc":
        own = [f"{kafka.prefix}-{key}-{number}" for number in range(20)]
        assert [name for name in made if name in own] == own


@pytest.mark.timeout(3600)
async def test_f15_a_bridge_that_dies_loses_no_job(
    kafka: Kafka, office: ServedMesh, tmp_path: Path, chaos: bool
) -> None:
    """One bridge after the other dies at its point, the next goes on with what it left."""
    variables = kafka.variables(pipeline_target=office.target, claims_url=str(tmp_path / "claims"))
    names = []
    for number in range(20 if chaos else 1):
        for point in BRIDGE:
            names.append(f"{kafka.prefix}-{number}-{point.replace(' ', '-')}")
            deadly = subprocess.Popen(
                [sys.executable, "-m", "tests.support.dies", point, "1", "serve", "kafka"],
                env={**os.environ, **variables, "VTRYON_KAFKA_LISTEN": "127.0.0.1:0"},
                stderr=subprocess.DEVNULL,
            )
            asked = job_request(names[-1], PICTURE, PICTURE, steps=3)
            await kafka.send("jobs.requests", "job_request", asked)
            assert await asyncio.to_thread(deadly.wait, 60) == -9, point
    with served("kafka", **variables):
        assert set((await states(kafka, names)).values()) == {"SUCCEEDED"}
        await asyncio.sleep(0.5)
        found = await kafka.messages("jobs.responses", 10**6, seconds=1)
    async with vtryon.Client(office.target) as client:
        jobs = [job async for job in client.jobs.list() if job.request_id in names]
    assert len(jobs) == len(names)
    ids = {job.request_id: job.id for job in jobs}
    said: dict[str, Any] = {}
    for one in map(kafka.read, (answer.value for answer in found)):
        # It may come twice, but it is one job and one picture.
        assert said.setdefault(one["request_id"], one) == one
        assert one["job_id"] == ids[one["request_id"]]
    assert await kafka.messages("jobs.dlq", 1, seconds=1) == []


@pytest.mark.timeout(300)
async def test_f16_a_group_that_changes_during_long_work_does_not_begin_it_again_and_again(
    kafka: Kafka, office: ServedMesh, tmp_path: Path
) -> None:
    variables = kafka.variables(
        pipeline_target=office.target, claims_url=str(tmp_path / "claims"), serves="sampling"
    )
    latents = np.zeros((16, 16, 12), "<f4").tobytes()
    embeddings = np.zeros((4, 128), "<f4").tobytes()

    def payload(kind: str, shape: list[int], data: bytes) -> dict[str, Any]:
        tensor = {"data_type": "FP32", "shape": shape}
        return {"kind": kind, "tensor": tensor, "image": None, "content": inline(data)}

    def work(name: str) -> dict[str, Any]:
        return {
            "request_id": name,
            "options": {"steps": 200, "seed": 1},  # 4 s
            "payloads": [
                payload("embeddings", [4, 128], embeddings),
                payload("reference_latents", [16, 16, 12], latents),
            ],
        }

    names = [f"{kafka.prefix}-{number}" for number in range(8)]
    with served("kafka", **variables):
        await kafka.send("sampling.requests", "stage_request", *map(work, names))
        await asyncio.sleep(0.5)
        started = time.monotonic()
        with served("kafka", **variables):
            await kafka.answers("sampling.responses", *names)
            assert time.monotonic() - started < 30
        more = [f"{kafka.prefix}-more-{number}" for number in range(3)]
        await kafka.send("sampling.requests", "stage_request", *map(work, more))
        await kafka.answers("sampling.responses", *more)
    found = await kafka.messages("sampling.responses", 10**6, seconds=1)
    said = [kafka.read(one.value) for one in found]
    assert [one["error"] for one in said if one["error"]] == []
    assert len(said) <= 2 * len(names) + len(more)
    assert await kafka.messages("sampling.dlq", 1, seconds=1) == []


@pytest.mark.timeout(300)
async def test_f17_while_the_registry_is_away_nothing_is_given_up(
    kafka: Kafka, office: ServedMesh, tmp_path: Path, chaos: bool
) -> None:
    """For 7 s, which is longer than a request may take; 30 s with `make chaos`."""
    away_seconds = 30 if chaos else 7
    variables = kafka.variables(pipeline_target=office.target, claims_url=str(tmp_path / "claims"))
    newer = schema("job_request")
    newer["fields"].append({"name": "basket", "type": "string", "default": ""})
    with served("kafka", **variables):
        schema_id = await asyncio.to_thread(kafka.register, "jobs.requests", newer)
        names = [f"{kafka.prefix}-{number}" for number in range(5)]
        kafka.registry.freeze()
        try:
            values = [
                written(newer, schema_id, job_request(one, PICTURE, PICTURE, steps=1))
                for one in names
            ]
            keys = [one.encode() for one in names]
            await kafka.send_raw("jobs.requests", *zip(keys, values, strict=True))
            await asyncio.sleep(away_seconds)
            found = await kafka.messages("jobs.responses", 10**6, seconds=1)
            assert not {one.key.decode() for one in found} & set(names)
            assert await kafka.messages("jobs.dlq", 1, seconds=1) == []
        finally:
            kafka.registry.thaw()
        assert set((await states(kafka, names)).values()) == {"SUCCEEDED"}
    for topic in ("jobs.dlq", "jobs.requests.retry-1"):
        assert await kafka.messages(topic, 1, seconds=1) == []
