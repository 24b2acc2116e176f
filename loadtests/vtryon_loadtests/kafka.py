"""A caller by Kafka, with nothing but a client of it and Avro."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fastavro
import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

_SCHEMAS = Path(__file__).parents[2] / "protos" / "kafka"


class KafkaCaller:
    """Sends requests for jobs, and waits for their answers."""

    def __init__(self, producer: Any, consumer: Any, prefix: str, registry: str) -> None:
        self._producer = producer
        self._consumer = consumer
        self._prefix = prefix
        self._registry = registry
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._request_id = 0
        self._request: Any = None

    @classmethod
    @asynccontextmanager
    async def open(cls, servers: str, registry: str, prefix: str) -> AsyncIterator[KafkaCaller]:
        """Connect, and listen to answers from now on."""
        producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all")
        consumer = AIOKafkaConsumer(bootstrap_servers=servers, fetch_max_wait_ms=50)
        await producer.start()
        await consumer.start()
        caller = cls(producer, consumer, prefix, registry)
        reading = asyncio.create_task(caller._read(await caller._begin()))
        try:
            yield caller
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await producer.stop()
            await consumer.stop()

    async def _begin(self) -> Any:
        topic = f"{self._prefix}.jobs.responses"
        partitions = await self._producer.partitions_for(topic)
        places = [TopicPartition(topic, number) for number in partitions]
        self._consumer.assign(places)
        await self._consumer.seek_to_end(*places)
        async with httpx.AsyncClient(base_url=self._registry) as http:
            subject = f"{self._prefix}.jobs.requests-value"
            latest = (await http.get(f"/subjects/{subject}/versions/latest")).json()
        self._request_id = latest["id"]
        self._request = fastavro.parse_schema(json.loads(latest["schema"]))
        text = (_SCHEMAS / "job_response.avsc").read_text()
        return fastavro.parse_schema(json.loads(text))

    def record(self, key: bytes, person: Any, garment: Any, **options: Any) -> bytes:
        """Write a request for a job, of contents as the schema has them."""
        record = {
            "request_id": key.decode(),
            "person": person,
            "garments": [garment],
            "options": options,
        }
        out = io.BytesIO()
        out.write(struct.pack(">bI", 0, self._request_id))
        fastavro.schemaless_writer(out, self._request, record)
        return out.getvalue()

    async def send(self, value: bytes, key: bytes, **headers: str) -> None:
        """Send bytes to the topic of requests; headers' underscores are hyphens."""
        said = [(name.replace("_", "-"), text.encode()) for name, text in headers.items()]
        await self._producer.send(f"{self._prefix}.jobs.requests", value, key=key, headers=said)

    async def draw(self, person: bytes, garment: bytes, **options: Any) -> None:
        """Have a picture drawn, and wait for it."""
        key = uuid.uuid4().hex.encode()
        answer = self._waiting[key] = asyncio.get_running_loop().create_future()
        pictures = ({"inline": one, "claim": None} for one in (person, garment))
        await self.send(self.record(key, *pictures, **options), key)
        await answer

    async def _read(self, schema: Any) -> None:
        async for record in self._consumer:
            said = fastavro.schemaless_reader(io.BytesIO(record.value[5:]), schema)
            assert isinstance(said, dict)
            answer = self._waiting.pop(record.key, None)
            if answer is None:
                continue
            if said["state"] == "SUCCEEDED":
                answer.set_result(said["picture"]["content"]["inline"] or b"")
            else:
                answer.set_exception(RuntimeError(f"{said['state']}: {said['error']}"))
