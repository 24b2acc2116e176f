"""The AsyncAPI 3 document: every topic, its messages, and their headers."""

from __future__ import annotations

import json
from typing import Any

import yaml

import vtryon
from vtryon.wire.channel import TENANT_KEY
from vtryon_services.bridges.kafka.messages import (
    ATTEMPT,
    BAGGAGE,
    CAUSATION,
    CORRELATION,
    DEADLINE,
    FAILED_AT,
    FROM_OFFSET,
    FROM_PARTITION,
    FROM_TOPIC,
    MESSAGE,
    NOT_BEFORE,
    PRIORITY,
    REASON,
    TRACEPARENT,
    TRACESTATE,
)
from vtryon_services.bridges.kafka.schemas import text_of
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.bridges.kafka.topics import Topic, all_topics

_AVRO = "application/vnd.apache.avro;version=1.11.0"
_HEADERS = {
    CORRELATION: "Opaque id of the client, copied to every message about the request.",
    CAUSATION: "Cause of the message: topic/partition/offset, or the id of a job.",
    TRACEPARENT: "W3C trace context.",
    TRACESTATE: "W3C trace context.",
    BAGGAGE: "W3C baggage.",
    TENANT_KEY: "Tenant that the message belongs to.",
    DEADLINE: "ISO 8601 timestamp after which the request fails.",
    PRIORITY: "interactive or batch; default: batch.",
}
_OF_RETRIES = {
    ATTEMPT: "Number of earlier attempts.",
    NOT_BEFORE: "Time before which the message is not processed, in milliseconds since 1970.",
}
_OF_DEAD_LETTERS = {
    REASON: "A vtryon.v1.ErrorReason without its prefix.",
    MESSAGE: "Human-readable message of the error.",
    FAILED_AT: "Time of the failure, ISO 8601.",
    FROM_TOPIC: "Topic of the original message.",
    FROM_PARTITION: "Partition of the original message.",
    FROM_OFFSET: "Offset of the original message.",
    ATTEMPT: "Number of attempts.",
}


def document() -> dict[str, Any]:
    """Make the document, for the topics' default names."""
    topics = all_topics(KafkaSettings())
    schemas = sorted({topic.schema for topic in topics if topic.schema})
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "vtryon by Kafka",
            "version": vtryon.__version__,
            "description": "Values are Avro in Confluent's wire format: a zero byte, the schema's "
            "id in four bytes, the record. Delivery is at least once; duplicates are identical.",
        },
        "defaultContentType": _AVRO,
        "channels": {_key(topic): _channel(topic) for topic in topics},
        "operations": {f"{_verb(topic)}-{_key(topic)}": _operation(topic) for topic in topics},
        "components": {
            "messages": {
                **{name: _message(name) for name in schemas},
                "dead_letter": {
                    "title": "A message that could not be processed, with its original bytes",
                    "contentType": "application/octet-stream",
                    "headers": _headers({**_HEADERS, **_OF_DEAD_LETTERS}),
                    "payload": {"type": "string", "format": "binary"},
                },
            }
        },
    }


def document_text() -> str:
    """Write the document as YAML."""
    note = "# Written by `vtryon kafka asyncapi`.\n"
    return note + yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=100)


def _key(topic: Topic) -> str:
    return topic.name.replace(".", "-")


def _verb(topic: Topic) -> str:
    return "receive" if _is_read(topic) else "send"


def _is_read(topic: Topic) -> bool:
    return topic.schema is not None and topic.schema.endswith("_request")


def _channel(topic: Topic) -> dict[str, Any]:
    name = topic.schema or "dead_letter"
    return {
        "address": topic.name,
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {
            "kafka": {
                "partitions": topic.partitions,
                "topicConfiguration": {
                    key: int(value) for key, value in sorted(topic.configs.items())
                },
            }
        },
    }


def _operation(topic: Topic) -> dict[str, Any]:
    return {
        "action": _verb(topic),
        "channel": {"$ref": f"#/channels/{_key(topic)}"},
    }


def _message(name: str) -> dict[str, Any]:
    schema = json.loads(text_of(name))
    extra = {REASON: _OF_DEAD_LETTERS[REASON]} if name.endswith("_response") else _OF_RETRIES
    return {
        "title": schema["doc"],
        "contentType": _AVRO,
        "headers": _headers({**_HEADERS, **extra}),
        "payload": {
            "schemaFormat": _AVRO,
            "schema": schema,
        },
    }


def _headers(described: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            name: {"type": "string", "description": words} for name, words in described.items()
        },
    }
