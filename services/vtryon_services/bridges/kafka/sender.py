"""Sends messages, and knows when they are safely with the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaError,
    MessageSizeTooLargeError,
    NoError,
    for_code,
)
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.structs import RecordMetadata
from opentelemetry import metrics

from vtryon.errors import SettingsError
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
        self._settings = settings
        self._started: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect, as an idempotent producer where the broker has them.

        Raises:
            KafkaError: the broker can't be reached.
            SettingsError: idempotent producers are demanded, and the broker has none.
        """
        settings = self._settings
        idempotent = settings.idempotent is not False
        if idempotent and (refusal := await _refusal(settings)):
            if settings.idempotent:
                raise SettingsError(
                    f"VTRYON_KAFKA_IDEMPOTENT is true, and the broker at "
                    f"{settings.bootstrap_servers} refuses idempotent producers ({refusal}); "
                    "unset it, or set it to false"
                )
            _log.warning("no idempotent producers: messages may arrive twice", cause=refusal)
            idempotent = False
        producer = AIOKafkaProducer(
            **settings.connection(),
            acks="all",
            enable_idempotence=idempotent,
            max_request_size=settings.max_message_bytes + HEADROOM_BYTES,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        self._started = producer

    async def stop(self) -> None:
        """Let go of connections."""
        if self._started is not None:
            await self._started.stop()

    @property
    def _producer(self) -> AIOKafkaProducer:
        if self._started is None:
            raise RuntimeError("the sender has not been started")
        return self._started

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


async def _refusal(settings: KafkaSettings) -> str:
    """Ask a broker for a producer id, and give the error with which it refuses; empty for none.

    Raises:
        KafkaError: it can't be asked now.
    """
    client = AIOKafkaClient(**settings.connection())
    try:
        await client.bootstrap()
        asked = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=60_000)
        answer = await client.send(client.get_random_node(), asked)
    except IncompatibleBrokerVersion as error:
        return type(error).__name__
    finally:
        await client.close()
    refusal = for_code(answer.error_code)
    if refusal.retriable:
        raise refusal
    return "" if refusal is NoError else str(refusal.__name__)


def _arrived(one: Message, future: asyncio.Future[RecordMetadata]) -> bool:
    error = future.exception()
    if error is None:
        _sent.add(len(one.value or b""), {"topic": one.topic})
        return True
    if isinstance(error, KafkaError) and not isinstance(error, MessageSizeTooLargeError):
        return False
    raise error
