"""Dead letters: list them, show one, and redrive them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from vtryon.catalog import JOBS
from vtryon.errors import Reason, RequestError, SettingsError, VtryonError
from vtryon_services.bridges.kafka.messages import (
    FAILED_AT,
    FROM_OFFSET,
    FROM_PARTITION,
    FROM_TOPIC,
    MESSAGE,
    REASON,
    Message,
    ReceivedMessage,
    revived,
)
from vtryon_services.bridges.kafka.records import StageRequestRecord
from vtryon_services.bridges.kafka.route import again_from
from vtryon_services.bridges.kafka.schemas import Codec
from vtryon_services.bridges.kafka.sender import Sender
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.bridges.kafka.topics import Names


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that never was done, and why."""

    offset: int
    reason: str
    message: str
    failed_at: str
    tenant: str
    request: str
    place: str
    attempts: int
    byte_length: int

    @classmethod
    def of(cls, received: ReceivedMessage) -> DeadLetter:
        """Read the headers of a dead letter."""
        places = (FROM_TOPIC, FROM_PARTITION, FROM_OFFSET)
        return cls(
            offset=received.offset,
            reason=received.header(REASON),
            message=received.header(MESSAGE),
            failed_at=received.header(FAILED_AT),
            tenant=received.tenant,
            request=(received.key or b"").decode("utf-8", "replace"),
            place="/".join(received.header(name) for name in places),
            attempts=received.attempt,
            byte_length=len(received.value or b""),
        )


class DeadLetters:
    """Those of jobs, or of one stage."""

    def __init__(self, settings: KafkaSettings, work: str) -> None:
        self._settings = settings
        self._work = work
        self._names = Names(settings, work)

    async def read(self, offsets: Sequence[int] = ()) -> AsyncIterator[ReceivedMessage]:
        """Give all, the oldest first, or those at these offsets.

        Raises:
            SettingsError: the broker can't be reached.
        """
        async with self._consumer() as (consumer, place):
            async for received in _all(consumer, place, 0):
                if not offsets or received.offset in offsets:
                    yield received

    async def redriven(self) -> int:
        """Give the offset before which all were sent again."""
        async with self._consumer() as (consumer, place):
            return await consumer.committed(place) or 0

    async def one(self, offset: int) -> ReceivedMessage:
        """Give a dead letter.

        Raises:
            RequestError: NOT_FOUND.
        """
        async for received in self.read([offset]):
            return received
        raise RequestError(
            f"there is no dead letter of {self._work} at {offset}", reason=Reason.NOT_FOUND
        )

    async def redrive(
        self,
        offsets: Sequence[int],
        from_stage: str | None,
        told: Callable[[DeadLetter, str, VtryonError | None], None],
    ) -> int:
        """Send dead letters again, unchanged; return how many. They stay in their topic.

        Without offsets, progress is committed up to the first letter that can't be sent: the next
        call starts with that one, and sends the later ones again.

        Args:
            offsets: of the letters; empty: all that were not redriven before.
            from_stage: an earlier stage to restart from, for try-ons that go from stage to stage.
            told: called for each with its destination topic, or with the error.
        """
        codec, sender, sent = Codec(self._settings), Sender(self._settings), 0
        commits = not offsets
        if from_stage is not None:
            await codec.register(self._settings)
        try:
            await sender.start()
            async with self._consumer() as (consumer, place):
                first = 0 if offsets else await consumer.committed(place) or 0
                async for received in _all(consumer, place, first):
                    if offsets and received.offset not in offsets:
                        continue
                    letter = DeadLetter.of(received)
                    try:
                        message = await self._revived(received, from_stage, codec)
                    except VtryonError as error:
                        told(letter, "", error)
                        commits = False  # a commit behind this letter would lose it
                        continue
                    await sender.send([message])
                    if commits:
                        await consumer.commit({place: received.offset + 1})
                    told(letter, message.topic, None)
                    sent += 1
        except KafkaError as error:
            raise self._unusable(error) from None
        finally:
            await sender.stop()
            await codec.close()
        return sent

    def _unusable(self, error: KafkaError) -> SettingsError:
        servers = self._settings.bootstrap_servers
        return SettingsError(f"the broker at {servers} can't be used: {error}")

    async def _revived(
        self, received: ReceivedMessage, from_stage: str | None, codec: Codec
    ) -> Message:
        if from_stage is None:
            return revived(received, self._names.requests)
        if self._work == JOBS:
            raise RequestError("from_stage: is for what a stage could not do; this is a whole job")
        record = await codec.decode(StageRequestRecord, received.value)
        again = codec.encode(again_from(record, self._work, from_stage))
        topic = Names(self._settings, from_stage).requests
        message = revived(received, topic)
        return Message(topic, message.key, again, message.headers)

    @asynccontextmanager
    async def _consumer(self) -> AsyncIterator[tuple[Any, TopicPartition]]:
        consumer = AIOKafkaConsumer(
            **self._settings.connection(),
            group_id=f"{self._names.dead_letters}.redrive",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        place = TopicPartition(self._names.dead_letters, 0)
        try:
            await consumer.start()
            consumer.assign([place])
            yield consumer, place
        except KafkaError as error:
            raise self._unusable(error) from None
        finally:
            await consumer.stop()


async def _all(consumer: Any, place: TopicPartition, offset: int) -> AsyncIterator[ReceivedMessage]:
    """Yield the records from an offset to the current end."""
    [first] = (await consumer.beginning_offsets([place])).values()
    [end] = (await consumer.end_offsets([place])).values()
    following = max(first, offset)
    consumer.seek(place, following)
    at_once = True  # the local broker gives an end that is too low where batches have many records
    while at_once or following < end:
        at_once = False
        found = await consumer.getmany(timeout_ms=1000)
        for record in [one for records in found.values() for one in records]:
            following = record.offset + 1
            yield ReceivedMessage.of(record)
