"""A broker that speaks Kafka's protocol and a schema registry, as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from tests.support.processes import VTRYON, free_port

from vtryon_services.bridges.kafka.settings import KafkaSettings


class Process:
    """A process on a port that it keeps through its restarts."""

    def __init__(self, command: list[Any], port: int, **environment: str) -> None:
        self._command = command
        self._environment = {**os.environ, **environment}
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 90
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
                return
            assert time.monotonic() < until, f"{self._command[0]} does not listen"
            time.sleep(0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    @contextmanager
    def running(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.thaw()
            self.kill()


def broker_process(storage: str = "memory://tansu/", **environment: str) -> Process:
    port = free_port()
    options = ["--listen", f"127.0.0.1:{port}", "--storage", storage]
    return Process([VTRYON, "kafka", "broker", *options], port, **environment)


def registry_process(file: Path) -> Process:
    port = free_port()
    command = [VTRYON, "kafka", "registry", "--listen", f"127.0.0.1:{port}", "--file", file]
    return Process(command, port)


@dataclass
class Kafka:
    """Where both are, and what the bridge is told of them."""

    broker: Process
    registry: Process
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self.broker.port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.registry.port}"

    def variables(self, **more: str) -> dict[str, str]:
        given = {
            "bootstrap_servers": self.servers,
            "registry_url": self.url,
            "prefix": self.prefix,
            "session_seconds": "2",
            "request_timeout_seconds": "6",
            "retry_seconds": "[0.2, 0.4]",
            **more,
        }
        return {f"VTRYON_KAFKA_{name.upper()}": value for name, value in given.items()}

    def create_topics(self) -> None:
        command = [VTRYON, "kafka", "topics", "create"]
        environment = {**os.environ, **self.variables()}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)

    def topic(self, name: str) -> str:
        return f"{self.prefix}.{name}"

    def register(self, topic: str, schema: Mapping[str, Any]) -> int:
        """Register a schema by plain HTTP, as any producer would."""
        body = json.dumps({"schema": json.dumps(schema)}).encode()
        request = urllib.request.Request(
            f"{self.url}/subjects/{self.topic(topic)}-value/versions",
            body,
            {"content-type": "application/vnd.schemaregistry.v1+json"},
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(json.load(answer)["id"])

    def schema_of(self, data: bytes) -> Any:
        [schema_id] = struct.unpack(">I", data[1:5])
        with urllib.request.urlopen(f"{self.url}/schemas/ids/{schema_id}", timeout=5) as answer:
            return json.loads(json.load(answer)["schema"])

    def read(self, data: bytes) -> dict[str, Any]:
        """Read a record with the schema that it was written by."""
        schema = fastavro.parse_schema(self.schema_of(data))
        return fastavro.schemaless_reader(BytesIO(data[5:]), schema)

    async def send(
        self, topic: str, name: str, *records: Mapping[str, Any], **headers: str
    ) -> list[bytes]:
        """Send records as any producer would: plain aiokafka, plain fastavro; gives their bytes."""
        asked = schema(name)
        schema_id = await asyncio.to_thread(self.register, topic, asked)
        values = [written(asked, schema_id, record) for record in records]
        keys = [record["request_id"].encode() for record in records]
        await self.send_raw(topic, *zip(keys, values, strict=True), **headers)
        return values

    async def send_raw(
        self, topic: str, *pairs: tuple[bytes | None, bytes | None], **headers: str
    ) -> None:
        """Send bytes; headers' underscores are hyphens."""
        said = [(name.replace("_", "-"), value.encode()) for name, value in headers.items()]
        async with self.producer() as producer:
            for key, value in pairs:
                await producer.send(self.topic(topic), value, key=key, headers=said)
            await producer.flush()

    async def answers(self, topic: str, *request_ids: str, seconds: float = 40) -> list[Any]:
        """Wait for the answers to requests, and give them in the requests' order."""
        found: dict[str, Any] = {}
        async with self.reader(topic) as reader:
            async with asyncio.timeout(seconds):
                while set(request_ids) - found.keys():
                    for records in (await reader.getmany(timeout_ms=100)).values():
                        for one in records:
                            found.setdefault(one.key.decode(), one)
        return [found[one] for one in request_ids]

    @asynccontextmanager
    async def reader(self, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
        """A consumer at the beginning of all partitions of a topic."""
        name = self.topic(topic)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.servers, auto_offset_reset="earliest", request_timeout_ms=6000
        )
        await consumer.start()
        try:
            partitions = await consumer._client.fetch_all_metadata()
            places = [
                TopicPartition(name, number)
                for number in partitions.partitions_for_topic(name) or {0}
            ]
            consumer.assign(places)
            for place in places:
                consumer.seek(place, 0)
            yield consumer
        finally:
            await consumer.stop()

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[AIOKafkaProducer]:
        producer = AIOKafkaProducer(
            bootstrap_servers=self.servers, acks="all", request_timeout_ms=6000
        )
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    async def messages(
        self, topic: str, count: int, *, seconds: float = 60, more: float = 0.0
    ) -> list[Any]:
        """Read a topic from its beginning until there are so many, and a little longer."""
        found: list[Any] = []
        async with self.reader(topic) as reader:
            until = time.monotonic() + seconds
            while len(found) < count and time.monotonic() < until:
                for records in (await reader.getmany(timeout_ms=200)).values():
                    found += records
            until = time.monotonic() + more
            while time.monotonic() < until:
                for records in (await reader.getmany(timeout_ms=100)).values():
                    found += records
        return sorted(found, key=lambda one: (one.partition, one.offset))


SCHEMAS = Path(__file__).parents[2] / "protos" / "kafka"


def schema(name: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / f"{name}.avsc").read_text())


def inline(data: bytes) -> dict[str, Any]:
    return {"inline": data, "claim": None}


def job_request(request_id: str, person: bytes, garment: bytes, **options: Any) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "person": inline(person),
        "garments": [inline(garment)],
        "options": options,
    }


def written(schema: Any, schema_id: int, record: Mapping[str, Any]) -> bytes:
    """Write a record as any producer would."""
    out = BytesIO()
    out.write(struct.pack(">bI", 0, schema_id))
    fastavro.schemaless_writer(out, fastavro.parse_schema(dict(schema)), record)
    return out.getvalue()


async def until(predicate: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not await predicate():
        assert time.monotonic() < end, "it did not come to be"
        await asyncio.sleep(0.05)


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
        return bool(answer.status == 200)
    time.sleep(0.05)
    return False


@contextmanager
def stored_broker(folder: Path) -> Iterator[Process]:
    """A broker that keeps what it acknowledged through its own end: on storage that speaks S3."""
    port = free_port()
    command = [sys.executable, "-m", "tests.support.s3", str(port)]
    environment = {
        "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    storage = Process(command, port)
    with storage.running():
        until = time.monotonic() + 10
        while not _answers(f"http://127.0.0.1:{port}/tansu"):
            assert time.monotonic() < until, "there is no bucket"
        broker = broker_process("s3://tansu/", **environment)
        with broker.running():
            yield broker


@contextmanager
def kafka_and_registry(folder: Path) -> Iterator[Kafka]:
    """Run a broker in memory and a schema registry until the block ends."""
    broker, registry = broker_process(), registry_process(folder / "r.json")
    with broker.running(), registry.running():
        yield Kafka(broker, registry)


def bridge_settings(kafka: Kafka, target: str, folder: Path, **given: Any) -> KafkaSettings:
    """Settings of a bridge with topics of its own."""
    return KafkaSettings.load(
        bootstrap_servers=kafka.servers,
        registry_url=kafka.url,
        prefix=kafka.prefix,
        idempotent=False,
        create_topics=True,
        retry_seconds=(),
        pipeline_target=target,
        claims_url=str(folder / "claims"),
        listen="127.0.0.1:0",
        **given,
    )
