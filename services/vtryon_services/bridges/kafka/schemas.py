"""Avro in Confluent's wire format: a zero byte, the schema's id in four bytes, the record."""

from __future__ import annotations

import io
import json
import struct
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import fastavro
from confluent_kafka.schema_registry import AsyncSchemaRegistryClient, Schema
from confluent_kafka.schema_registry.error import SchemaRegistryError

from vtryon.errors import ProtocolError, Reason, SettingsError, UnavailableError
from vtryon_services.bridges.kafka.records import TopicRecord
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.bridges.kafka.topics import all_topics

R = TypeVar("R", bound=TopicRecord)
# In the repository under protos, in an installation inside the package.
_HERE = Path(__file__).parent
FOLDER = next(
    (
        one
        for one in (_HERE / "schemas", *(up / "protos" / "kafka" for up in _HERE.parents))
        if one.is_dir()
    ),
    _HERE / "schemas",
)
COMPATIBILITY = "BACKWARD_TRANSITIVE"
_MAGIC, _HEADER = 0, struct.Struct(">bI")
_NOT_FOUND, _SERVER = 404, 500


@cache
def text_of(name: str) -> str:
    """Give a schema's text, by the name of its file."""
    return (FOLDER / f"{name}.avsc").read_text()


@cache
def parsed(name: str) -> Any:
    """Give a schema, parsed."""
    return fastavro.parse_schema(json.loads(text_of(name)))


def subject_of(topic: str) -> str:
    """Name the subject of a topic's values: Confluent's default strategy."""
    return f"{topic}-value"


class Codec:
    """Reads and writes records of our schemas; asks the registry once per schema."""

    def __init__(self, settings: KafkaSettings) -> None:
        config: dict[str, Any] = {
            "url": settings.registry_url,
            "timeout": 3,
            "max.retries": 0,  # waiting is the worker's business
        }
        if settings.registry_user is not None and settings.registry_password is not None:
            password = settings.registry_password.get_secret_value()
            config["basic.auth.user.info"] = f"{settings.registry_user}:{password}"
        try:
            self._client = AsyncSchemaRegistryClient(config)
        except ValueError as error:
            raise SettingsError(f"the schema registry can't be used: {error}") from None
        self._writers: dict[int, Any] = {}
        self._ids: dict[str, int] = {}

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.aclose()

    async def register(self, settings: KafkaSettings) -> None:
        """Register the schemas of all topics, each under its subject.

        Raises:
            SettingsError: the registry has one that ours could not follow.
            UnavailableError: it can't be reached.
        """
        for topic in all_topics(settings):
            if topic.schema is None:
                continue
            subject = subject_of(topic.name)
            try:
                schema = Schema(text_of(topic.schema), "AVRO")
                if await self._is_new(subject):
                    await self._client.set_compatibility(subject, COMPATIBILITY)
                self._ids[topic.schema] = await self._client.register_schema(subject, schema)
            except SchemaRegistryError as error:
                if error.http_status_code < _SERVER:
                    raise SettingsError(f"{subject} is refused by the registry: {error}") from None
                raise _unreachable(error) from None
            except Exception as error:  # whatever its HTTP client raises
                raise _unreachable(error) from None

    async def _is_new(self, subject: str) -> bool:
        try:
            return not await self._client.get_versions(subject)
        except SchemaRegistryError as error:
            if error.http_status_code == _NOT_FOUND:
                return True
            raise

    def encode(self, record: TopicRecord) -> bytes:
        """Encode a record with the schema of its class.

        Raises:
            ValueError: the record does not match the schema.
        """
        out = io.BytesIO()
        out.write(_HEADER.pack(_MAGIC, self._ids[record.schema]))
        fastavro.schemaless_writer(out, parsed(record.schema), record.to_record())
        return out.getvalue()

    async def decode(self, kind: type[R], data: bytes | None) -> R:
        """Decode a record of any schema that is compatible with that of `kind`.

        Raises:
            ProtocolError: MESSAGE_MALFORMED; it can never be read.
            UnavailableError: the registry is unreachable.
        """
        if data is None or len(data) < _HEADER.size:
            raise _malformed("the message is no record in the schema registry's wire format")
        magic, schema_id = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise _malformed("the message does not begin with a zero byte and a schema's id")
        writer = await self._writer(schema_id)
        body = io.BytesIO(memoryview(data)[_HEADER.size :])
        try:
            record = fastavro.schemaless_reader(body, writer, parsed(kind.schema))
        except Exception as error:  # fastavro raises whatever comes first
            raise _malformed(f"the message is no {kind.schema}: {type(error).__name__}") from None
        if not isinstance(record, dict) or body.read(1):
            raise _malformed(f"the message is no {kind.schema}: bytes are left over")
        return kind.from_record(record)

    async def _writer(self, schema_id: int) -> Any:
        if schema_id not in self._writers:
            try:
                found = await self._client.get_schema(schema_id)
            except SchemaRegistryError as error:
                if error.http_status_code == _NOT_FOUND:
                    words = f"the message was written by schema {schema_id}, and there is none"
                    raise _malformed(words) from None
                raise _unreachable(error) from None
            except Exception as error:  # whatever its HTTP client raises
                raise _unreachable(error) from None
            try:
                self._writers[schema_id] = fastavro.parse_schema(json.loads(found.schema_str or ""))
            except (ValueError, fastavro.schema.SchemaParseException) as error:
                raise _malformed(f"schema {schema_id} is no Avro: {error}") from None
        return self._writers[schema_id]


def _malformed(message: str) -> ProtocolError:
    return ProtocolError(message, reason=Reason.MESSAGE_MALFORMED)


def _unreachable(error: Exception) -> UnavailableError:
    return UnavailableError(f"schema registry unreachable: {str(error) or type(error).__name__}")
