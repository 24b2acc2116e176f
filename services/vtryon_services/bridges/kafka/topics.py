"""Topics: their names, how they are set up, and whether those of a broker are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from vtryon.catalog import JOBS
from vtryon.errors import SettingsError
from vtryon_services.bridges.kafka.settings import HEADROOM_BYTES, WORKS, KafkaSettings

_LIMIT, _RETENTION = "max.message.bytes", "retention.ms"


@dataclass(frozen=True, slots=True)
class Topic:
    """Required configuration of a topic.

    Attributes:
        schema: file under protos/kafka; None for dead letters, which keep their original bytes.
    """

    name: str
    schema: str | None
    partitions: int
    configs: Mapping[str, str]


class Names:
    """The topics of jobs, or of one stage."""

    def __init__(self, settings: KafkaSettings, work: str) -> None:
        self._base = f"{settings.prefix}.{work}"
        self._retry_seconds = settings.retry_seconds
        self.requests = f"{self._base}.requests"
        self.responses = f"{self._base}.responses"
        self.dead_letters = f"{self._base}.dlq"
        self.events = f"{self._base}.events"

    @property
    def retries(self) -> list[str]:
        """Where requests wait for another attempt, the shortest wait first."""
        return [f"{self.requests}.retry-{number + 1}" for number in range(len(self._retry_seconds))]


def all_topics(settings: KafkaSettings) -> list[Topic]:
    """Give every topic of jobs and stages."""
    retention = {_RETENTION: str(round(settings.retention_seconds * 1000))}
    configs = {_LIMIT: str(settings.max_message_bytes), **retention}
    # Copies say besides where they come from.
    copies = {_LIMIT: str(settings.max_message_bytes + HEADROOM_BYTES), **retention}

    def topics(work: str) -> Iterator[Topic]:
        names, of = Names(settings, work), "job" if work == JOBS else "stage"
        yield Topic(names.requests, f"{of}_request", settings.partitions, configs)
        for name in names.retries:
            yield Topic(name, f"{of}_request", settings.partitions, copies)
        yield Topic(names.responses, f"{of}_response", settings.partitions, configs)
        yield Topic(names.dead_letters, None, 1, copies)
        if work == JOBS:
            yield Topic(names.events, "job_event", settings.partitions, configs)

    return [topic for work in WORKS for topic in topics(work)]


async def create_topics(settings: KafkaSettings) -> list[str]:
    """Make the topics that a broker has not; gives their names.

    Raises:
        SettingsError: the broker can't be reached, or refuses.
    """
    wanted = all_topics(settings)
    async with _admin(settings) as admin:
        there = set(await admin.list_topics())
        missing = [topic for topic in wanted if topic.name not in there]
        if not missing:
            return []
        new = [
            NewTopic(one.name, one.partitions, settings.replication, topic_configs={**one.configs})
            for one in missing
        ]
        answer = await admin.create_topics(new)
        for name, code, *words in answer.topic_errors:
            if code and for_code(code) is not TopicAlreadyExistsError:
                said = words[0] if words and words[0] else for_code(code).__name__
                raise SettingsError(f"topic {name} can't be made: {said}")
    return [topic.name for topic in missing]


async def check_topics(settings: KafkaSettings, works: Sequence[str]) -> list[str]:
    """Report problems of the topics that these consumers need; empty if there are none.

    Raises:
        SettingsError: the broker is unreachable.
    """
    needed = [one for one in all_topics(settings) if one.name.split(".")[1] in works]
    async with _admin(settings) as admin:
        there = {one["topic"]: one for one in await admin.describe_topics()}
        known = [one for one in needed if one.name in there]
        resources = [ConfigResource(ConfigResourceType.TOPIC, one.name) for one in known]
        configs = await _configs(admin, resources)
    problems = [f"there is no topic {one.name}" for one in needed if one.name not in there]
    for topic in known:
        partitions = len(there[topic.name]["partitions"])
        if partitions < topic.partitions:
            problems.append(f"{topic.name} has {partitions} partitions of {topic.partitions}")
        problems += _too_small(topic, configs.get(topic.name, {}))
    return problems


def _too_small(topic: Topic, configs: Mapping[str, str | None]) -> Iterator[str]:
    for key, wanted in topic.configs.items():
        found = configs.get(key)
        if found is None or (key == _RETENTION and int(found) < 0):  # unknown; forever
            continue
        if int(found) < int(wanted):
            yield f"{topic.name} has {key}={found}, less than {wanted}"


async def _configs(
    admin: AIOKafkaAdminClient, resources: Sequence[ConfigResource]
) -> dict[str, dict[str, str | None]]:
    found: dict[str, dict[str, str | None]] = {}
    for answer in await admin.describe_configs(list(resources)) if resources else []:
        for resource in answer.resources:
            _code, _words, _kind, name, entries = resource[:5]
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found


@asynccontextmanager
async def _admin(settings: KafkaSettings) -> AsyncIterator[Any]:
    admin = AIOKafkaAdminClient(**settings.connection())
    try:
        await admin.start()
        yield admin
    except KafkaError as error:
        raise SettingsError(
            f"the broker at {settings.bootstrap_servers} can't be used: {error}"
        ) from error
    finally:
        await admin.close()
