"""A picture by Kafka, with aiokafka and fastavro alone: none of vtryon's code.

python kafka_job.py BROKER REGISTRY_URL PERSON GARMENT RESULT [PREFIX]
"""

import asyncio
import io
import json
import struct
import sys
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import fastavro
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer


def ask(url: str) -> dict[str, Any]:
    """Ask the schema registry."""
    with urllib.request.urlopen(url) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
        return found


def content(path: str) -> dict[str, bytes | None]:
    """Give a file as the record field of a picture."""
    return {"inline": Path(path).read_bytes(), "claim": None}


async def main(
    broker: str, registry: str, person: str, garment: str, out: str, prefix: str = "vtryon"
) -> None:
    """Send a request, and wait for the answer to it."""
    requests, responses = f"{prefix}.jobs.requests", f"{prefix}.jobs.responses"
    latest = ask(f"{registry}/subjects/{requests}-value/versions/latest")
    request_id = uuid.uuid4().hex  # sent again with the same one, it is the same job
    request = {
        "request_id": request_id,
        "person": content(person),
        "garments": [content(garment)],
        "options": {"steps": 4, "seed": 7},
    }
    # Confluent's wire format: a zero byte, the schema's id, the record.
    message = io.BytesIO(struct.pack(">bI", 0, latest["id"]))
    message.seek(0, io.SEEK_END)
    schema = fastavro.parse_schema(json.loads(latest["schema"]))
    fastavro.schemaless_writer(message, schema, request)
    async with (
        AIOKafkaConsumer(responses, bootstrap_servers=broker) as consumer,
        AIOKafkaProducer(bootstrap_servers=broker, acks="all") as producer,
    ):
        await consumer.seek_to_end()
        await producer.send_and_wait(requests, message.getvalue(), key=request_id.encode())
        async for record in consumer:
            if record.key != request_id.encode():
                continue
            [schema_id] = struct.unpack(">I", record.value[1:5])
            written_by = json.loads(ask(f"{registry}/schemas/ids/{schema_id}")["schema"])
            job: Any = fastavro.schemaless_reader(io.BytesIO(record.value[5:]), written_by)
            if job["error"]:
                sys.exit(f"{job['error']['reason']}: {job['error']['message']}")
            picture = job["picture"]["content"]["inline"]
            await asyncio.to_thread(Path(out).write_bytes, picture)
            print(f"job {job['job_id']} {job['state'].lower()} in {job['wall_seconds']:.2f} s")
            return


asyncio.run(main(*sys.argv[1:]))
