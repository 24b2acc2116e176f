"""Schemas, topics, the registry, and the document: what others build on."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import httpx
import jsonschema
import pytest
import yaml
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from structlog.testing import CapturingLogger
from tests.support.kafka import (
    SCHEMAS,
    Kafka,
    job_request,
    registry_process,
    schema,
    written,
)
from tests.support.pictures import png
from tests.support.processes import VTRYON

import vtryon
from vtryon.types import Numerics, TryOnOptions
from vtryon_services.bridges.kafka.asyncapi import document, document_text
from vtryon_services.bridges.kafka.registry import create_registry
from vtryon_services.bridges.kafka.schemas import Codec
from vtryon_services.bridges.kafka.sender import Sender
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.bridges.kafka.topics import all_topics, check_topics

ROOT = Path(__file__).parents[4]
PICTURE = png()


def field_names(record: Any) -> set[str]:
    return {field["name"] for field in record["fields"]}


def field(record: Any, name: str) -> Any:
    return next(one for one in record["fields"] if one["name"] == name)


class TestSchemas:
    def test_options_are_those_of_the_other_interfaces(self) -> None:
        options = field(schema("job_request"), "options")["type"]
        own = {one.name for one in dataclasses.fields(TryOnOptions)}
        assert field_names(options) == own - {"previews", "priority"}  # nobody looks; a header
        numerics = field(options, "numerics")["type"][1]
        assert field_names(numerics) == {one.name for one in dataclasses.fields(Numerics)}

    def test_everything_is_described(self) -> None:
        def undescribed(record: Any) -> Iterator[str]:
            for one in record.get("fields", ()):
                if not one.get("doc"):
                    yield f"{record['name']}.{one['name']}"
                for kind in one["type"] if isinstance(one["type"], list) else [one["type"]]:
                    if isinstance(kind, dict):
                        yield from undescribed(kind)

        for path in SCHEMAS.glob("*.avsc"):
            assert list(undescribed(json.loads(path.read_text()))) == []

    async def test_a_newer_producer_is_understood(self, kafka: Kafka) -> None:
        newer = schema("job_request")
        newer["fields"].append({"name": "basket", "type": ["null", "string"], "default": None})
        schema_id = kafka.register("jobs.requests", newer)
        one = uuid.uuid4().hex
        request = {**job_request(one, PICTURE, PICTURE, steps=1), "basket": "b-1"}
        await kafka.send_raw("jobs.requests", (one.encode(), written(newer, schema_id, request)))
        [answer] = await kafka.answers("jobs.responses", one)
        assert kafka.read(answer.value)["state"] == "SUCCEEDED"

    async def test_an_older_producer_is_understood(self, kafka: Kafka) -> None:
        older = schema("job_request")
        older["fields"] = [one for one in older["fields"] if one["name"] != "labels"]
        schema_id = kafka.register("jobs.requests", older)
        one = uuid.uuid4().hex
        request = job_request(one, PICTURE, PICTURE, steps=1)
        await kafka.send_raw("jobs.requests", (one.encode(), written(older, schema_id, request)))
        [answer] = await kafka.answers("jobs.responses", one)
        assert kafka.read(answer.value)["state"] == "SUCCEEDED"

    async def test_an_older_and_a_newer_consumer_understand_us(self, kafka: Kafka) -> None:
        one = uuid.uuid4().hex
        await kafka.send(
            "jobs.requests", "job_request", job_request(one, PICTURE, PICTURE, steps=1)
        )
        [answer] = await kafka.answers("jobs.responses", one)
        older, newer = schema("job_response"), schema("job_response")
        older["fields"] = [one for one in older["fields"] if one["name"] not in {"hops", "labels"}]
        newer["fields"].append({"name": "queue", "type": "string", "default": "none"})
        writer = fastavro.parse_schema(kafka.schema_of(answer.value))
        for reader in (older, newer):
            body = BytesIO(answer.value[5:])
            said = fastavro.schemaless_reader(body, writer, fastavro.parse_schema(reader))
            assert said["state"] == "SUCCEEDED"

    def test_what_old_readers_or_records_would_break_on_is_refused(self, kafka: Kafka) -> None:
        broken = schema("job_request")
        field(broken, "request_id")["type"] = "long"
        required = schema("job_request")
        required["fields"].append({"name": "basket", "type": "string"})
        for one in (broken, required):
            answer = httpx.post(
                f"{kafka.url}/subjects/{kafka.topic('jobs.requests')}-value/versions",
                json={"schema": json.dumps(one)},
            )
            assert (answer.status_code, answer.json()["error_code"]) == (409, 409)

    async def test_a_registry_that_has_another_stops_the_start(self, kafka_servers: Kafka) -> None:
        kafka = replace(kafka_servers, prefix=f"t{uuid.uuid4().hex[:6]}")
        kafka.register("jobs.requests", {"type": "record", "name": "Other", "fields": []})
        httpx.put(
            f"{kafka.url}/config/{kafka.topic('jobs.requests')}-value",
            json={"compatibility": "FULL_TRANSITIVE"},
        )
        settings = KafkaSettings.load(registry_url=kafka.url, prefix=kafka.prefix)
        codec = Codec(settings)
        with pytest.raises(vtryon.SettingsError, match="is refused by the registry"):
            await codec.register(settings)
        await codec.close()


class TestRegistry:
    @pytest.fixture
    def http(self, tmp_path: Path) -> Iterator[httpx.Client]:
        process = registry_process(tmp_path / "schemas.json")
        with process.running(), httpx.Client(base_url=f"http://127.0.0.1:{process.port}") as http:
            http.restart = lambda: (process.kill(), process.start())
            yield http

    def test_it_speaks_as_confluent_s(self, http: httpx.Client) -> None:
        text = json.dumps({"type": "string"})
        assert http.get("/subjects").json() == []
        missing = http.get("/subjects/a-value/versions")
        assert (missing.status_code, missing.json()["error_code"]) == (404, 40401)
        made = http.post("/subjects/a-value/versions", json={"schema": text}).json()
        assert http.post("/subjects/a-value/versions", json={"schema": text}).json() == made
        assert http.post("/subjects/b-value/versions", json={"schema": text}).json() == made
        assert http.get(f"/schemas/ids/{made['id']}").json() == {"schema": '{"type":"string"}'}
        latest = http.get("/subjects/a-value/versions/latest").json()
        assert (latest["version"], latest["id"]) == (1, made["id"])
        assert http.post("/subjects/a-value", json={"schema": text}).json() == latest
        none = http.get("/schemas/ids/99")
        assert (none.status_code, none.json()["error_code"]) == (404, 40403)
        bad = http.post("/subjects/a-value/versions", json={"schema": "{"})
        assert (bad.status_code, bad.json()["error_code"]) == (422, 42201)
        assert http.post("/subjects/a-value/versions", json={}).status_code == 422
        asked = http.post(
            "/compatibility/subjects/a-value/versions/latest",
            json={"schema": json.dumps({"type": "int"})},
        )
        assert asked.json()["is_compatible"] is False

    def test_what_it_kept_outlives_it(self, http: httpx.Client) -> None:
        made = http.post("/subjects/a-value/versions", json={"schema": '"string"'}).json()
        http.put("/config/a-value", json={"compatibility": "FULL"})
        http.restart()
        assert http.get("/subjects/a-value/versions/1").json()["id"] == made["id"]
        assert http.get("/config/a-value").json() == {"compatibilityLevel": "FULL"}

    @pytest.mark.parametrize(
        ("level", "newest", "accepted"),
        [
            ("BACKWARD_TRANSITIVE", {"a", "c?"}, True),
            ("BACKWARD_TRANSITIVE", {"a", "c"}, False),
            ("FORWARD", {"a", "c"}, True),
            ("FORWARD", {"c?"}, False),
            ("FULL_TRANSITIVE", {"a", "c?"}, True),
            ("NONE", {"z"}, True),
        ],
    )
    def test_levels(self, level: str, newest: set[str], accepted: bool) -> None:
        from starlette.testclient import TestClient

        def record(fields: set[str]) -> str:
            made = [
                {"name": name.strip("?"), "type": "int", **({"default": 0} if "?" in name else {})}
                for name in sorted(fields)
            ]
            return json.dumps({"type": "record", "name": "R", "fields": made})

        http = TestClient(create_registry())
        http.put("/config/s", json={"compatibility": level})
        http.post("/subjects/s/versions", json={"schema": record({"a"})})
        answer = http.post("/subjects/s/versions", json={"schema": record(newest)})
        assert answer.is_success == accepted, answer.text


class TestTopics:
    def run(self, kafka: Kafka, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [VTRYON, *arguments],
            env={**os.environ, **kafka.variables(**more)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def test_they_are_made_once_and_hold(self, kafka_servers: Kafka) -> None:
        kafka = replace(kafka_servers, prefix="made")
        assert "26 topics, 26 of them new" in self.run(kafka, "kafka", "topics", "create").stderr
        assert "26 topics, 0 of them new" in self.run(kafka, "kafka", "topics", "create").stderr
        assert "26 topics hold" in self.run(kafka, "kafka", "topics", "check").stderr

    def test_a_mismatch_is_told_and_stops_the_start(self, kafka_servers: Kafka) -> None:
        kafka = replace(kafka_servers, prefix="less")
        self.run(kafka, "kafka", "topics", "create", partitions="1", max_message_bytes="700000")
        checked = self.run(kafka, "kafka", "topics", "check")
        assert checked.returncode == 1
        assert "less.jobs.requests has 1 partitions of 3" in checked.stderr
        assert "max.message.bytes=700000, less than 1048576" in checked.stderr.replace("\n", "")
        served = self.run(kafka, "serve", "kafka", "--listen", "127.0.0.1:0")
        assert served.returncode == 2
        assert "vtryon kafka topics create" in " ".join(served.stderr.split())

    def test_without_topics_the_start_fails_and_says_how_to_make_them(
        self, kafka_servers: Kafka
    ) -> None:
        kafka = replace(kafka_servers, prefix="none")
        served = self.run(kafka, "serve", "kafka", "--listen", "127.0.0.1:0")
        assert served.returncode == 2
        assert "there is no topic none.jobs.requests" in " ".join(served.stderr.split())

    def test_a_broker_that_is_not_there_is_told(self, kafka_servers: Kafka) -> None:
        done = self.run(kafka_servers, "kafka", "topics", "check", bootstrap_servers="127.0.0.1:1")
        assert done.returncode == 2
        assert "the broker at 127.0.0.1:1 can't be used" in done.stderr.replace("\n", " ")

    async def test_of_what_is_served_alone(self, kafka_servers: Kafka) -> None:
        settings = KafkaSettings.load(bootstrap_servers=kafka_servers.servers, prefix="alone")
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka_servers.servers)
        await admin.start()
        mine = [one for one in all_topics(settings) if ".decoding." in one.name]
        new = [
            NewTopic(one.name, one.partitions, 1, topic_configs=dict(one.configs)) for one in mine
        ]
        await admin.create_topics(new)
        await admin.close()
        assert await check_topics(settings, ["decoding"]) == []
        assert len(await check_topics(settings, ["jobs"])) == 6


class TestSettings:
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"serves": "jobs, film"}, "serves has unknown film"),
            ({"claim_bytes": 2**20}, "claim_bytes takes at most"),
            ({"security_protocol": "SASL_SSL"}, "both sasl_username and sasl_password"),
            ({"security_protocol": "SSL", "tls_ca_path": "/nowhere"}, "tls_ca_path can't be read"),
        ],
    )
    def test_what_does_not_go_together_is_told(self, given: dict, words: str) -> None:
        with pytest.raises(vtryon.SettingsError, match=words):
            KafkaSettings.load(**given).connection()

    def test_a_password_is_shown_nowhere(self) -> None:
        settings = KafkaSettings.load(
            security_protocol="SASL_PLAINTEXT", sasl_username="me", sasl_password="hunter2"
        )
        assert "hunter2" not in repr(settings)
        assert settings.connection()["sasl_plain_password"] == "hunter2"


class TestDocument:
    def test_it_is_current(self) -> None:
        kept = (ROOT / "protos" / "kafka" / "asyncapi.yaml").read_text()
        assert document_text() == kept, "vtryon kafka asyncapi --out protos/kafka/asyncapi.yaml"

    def test_asyncapi_s_own_schema_takes_it(self, tmp_path: Path) -> None:
        if shutil.which("npm") is None:
            pytest.skip("there is no npm here")
        package = "@asyncapi/specs@6.11.1"
        install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", tmp_path, package]
        done = subprocess.run(install, capture_output=True, text=True, timeout=100)
        if done.returncode:
            pytest.skip(f"npm has no {package}: {done.stderr[-200:]}")
        [found] = tmp_path.glob("node_modules/@asyncapi/specs/schemas/3.0.0.json")
        validator = jsonschema.Draft7Validator(json.loads(found.read_text()))
        made = document()
        assert [error.message for error in validator.iter_errors(made)] == []
        made["channels"]["vtryon-jobs-dlq"]["surprise"] = 1
        assert list(validator.iter_errors(made))

    def test_it_names_every_topic_and_schema(self) -> None:
        made = yaml.safe_load(document_text())
        addresses = {one["address"] for one in made["channels"].values()}
        assert addresses == {topic.name for topic in all_topics(KafkaSettings())}
        for name in ("job_request", "stage_response"):
            payload = made["components"]["messages"][name]["payload"]
            assert payload["schema"] == schema(name)


async def test_a_broker_without_idempotent_producers_is_served_all_the_same(
    kafka_servers: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not capture_logs: an earlier test may have made the module keep its logger.
    logger = CapturingLogger()
    monkeypatch.setattr("vtryon_services.bridges.kafka.sender._log", logger)
    sender = Sender(KafkaSettings.load(bootstrap_servers=kafka_servers.servers))
    await sender.start()
    await sender.stop()
    assert [call.args[0] for call in logger.calls] == [
        "no idempotent producers: messages may arrive twice"
    ]
    demanding = KafkaSettings.load(bootstrap_servers=kafka_servers.servers, idempotent=True)
    with pytest.raises(vtryon.SettingsError, match="VTRYON_KAFKA_IDEMPOTENT"):
        await Sender(demanding).start()


async def test_a_producer_with_idempotence_and_groups_on_librdkafka_s_broker() -> None:
    """The local broker can't; this one is a mock of librdkafka's, of three brokers."""
    from confluent_kafka import Producer

    mock = Producer({"test.mock.num.brokers": 3, "bootstrap.servers": "none"})
    metadata = await asyncio.to_thread(mock.list_topics, timeout=10)
    servers = ",".join(f"{one.host}:{one.port}" for one in metadata.brokers.values())
    settings = KafkaSettings.load(bootstrap_servers=servers, idempotent=True)
    sender = Sender(settings)
    await sender.start()
    from aiokafka import AIOKafkaConsumer

    from vtryon_services.bridges.kafka.messages import Message

    sent = [Message("t", b"k", str(number).encode()) for number in range(200)]
    await sender.send(sent)
    await sender.stop()
    consumer = AIOKafkaConsumer(
        "t", bootstrap_servers=servers, group_id="g", auto_offset_reset="earliest"
    )
    await consumer.start()
    found: list[bytes] = []
    async with asyncio.timeout(30):
        while len(found) < 200:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += [one.value for one in records]
    await consumer.stop()
    assert found == [one.value for one in sent]
