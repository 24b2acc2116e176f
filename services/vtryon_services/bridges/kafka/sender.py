"""Sends messages, and knows when they are safely with the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.structs import RecordMetadata
from opentelemetry import metrics

from vtryon_services.bridges.kafka.messages import Message
from vtryon_services.bridges.kafka.settings import HEADROOM_BYTES, KafkaSettings

_log = structlog.get_logger("vtryon.kafka")
_PAUSE_SECONDS = 0.2
_sent = metrics.get_meter("vtryon").create_counter(
    "vtryon.kafka.bytes", unit="By", description="Sent, by topic."
)


class Sender:
    """A producer that does not give up; a message may arrive twice, but none is lost."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._producer = AIOKafkaProducer(
            **settings.connection(),
            acks="all",
            enable_idempotence=settings.idempotent,
            max_request_size=settings.max_message_bytes + HEADROOM_BYTES,
        )

    async def start(self) -> None:
        """Connect.

        Raises:
            KafkaError: the broker can't be reached.
        """
        await self._producer.start()

    async def stop(self) -> None:
        """Let go of connections."""
        await self._producer.stop()

    async def send(self, messages: Sequence[Message]) -> None:
        """Return when all are with the broker and its followers; in order per topic and key.

        Raises:
            MessageSizeTooLargeError: one is larger than topics take.
        """
        left = list(messages)
        while left:
            on_their_way = [(one, await self._post(one)) for one in left]
            await asyncio.wait([future for _, future in on_their_way])
            left = [one for one, future in on_their_way if not _arrived(one, future)]
            if left:
                _log.warning("messages could not be sent yet", count=len(left))
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _post(self, one: Message) -> asyncio.Future[RecordMetadata]:
        try:
            future: asyncio.Future[RecordMetadata] = await self._producer.send(
                one.topic, one.value, key=one.key, headers=one.sent_headers()
            )
        except KafkaError as error:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
        return future


def _arrived(one: Message, future: asyncio.Future[RecordMetadata]) -> bool:
    error = future.exception()
    if error is None:
        _sent.add(len(one.value or b""), {"topic": one.topic})
        return True
    if isinstance(error, KafkaError) and not isinstance(error, MessageSizeTooLargeError):
        return False
    raise error
