"""Consumer of a topic's messages: several concurrently, in order per key, without loss.

A message is done when the broker has acknowledged the messages that it caused; offsets are
committed after done messages only. Work repeated after a crash has the same effect as once.

While a service, the registry or the broker is away, the message waits in place. A failed message
goes through the retry topics, then to the dead letters; one that can never succeed goes there at
once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from opentelemetry import context, metrics, propagate, trace

from vtryon.errors import (
    OverloadedError,
    Reason,
    RequestError,
    StageError,
    UnavailableError,
    VtryonError,
)
from vtryon.wire.call_status import is_being_cancelled
from vtryon_services.bridges.kafka.messages import Message, ReceivedMessage, again, dead
from vtryon_services.bridges.kafka.sender import Sender
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.bridges.kafka.topics import Names

_log = structlog.get_logger("vtryon.kafka")
_POLL_MS = 100
# A broker answers when there is something; the local one looks again only when this is over.
_FETCH_WAIT_MS = 50
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0
_BETWEEN_COMMITS_SECONDS = 0.2
_tracer = trace.get_tracer("vtryon")
_meter = metrics.get_meter("vtryon")
_done = _meter.create_counter("vtryon.kafka.messages", description="Worked on, by outcome.")
_waits = _meter.create_counter(
    "vtryon.kafka.waits", description="Pauses since something that is needed was away."
)


class Work(Protocol):
    """Processing of a topic's messages."""

    names: Names

    async def handle(self, received: ReceivedMessage) -> Sequence[Message]:
        """Process a message; return the messages that it causes.

        Raises:
            VtryonError: it failed.
        """
        ...

    async def failed(self, received: ReceivedMessage, error: VtryonError) -> Sequence[Message]:
        """Build the message that reports the final failure to the sender."""
        ...


class Partition:
    """Messages in progress of a partition, and the offset up to which all are done."""

    def __init__(self) -> None:
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.behind = 0
        self.committed = 0

    def add(self, offset: int, task: asyncio.Task[None]) -> None:
        """Hold a message until it is done."""
        self.tasks[offset] = task
        self.behind = offset + 1

    @property
    def position(self) -> int:
        """The first offset that is not done."""
        return min(self.tasks, default=self.behind)


class ConsumerLoop(ConsumerRebalanceListener):
    """A member of the consumer group that does one kind of work."""

    def __init__(self, work: Work, sender: Sender, settings: KafkaSettings) -> None:
        self._work = work
        self._names = work.names
        self._sender = sender
        self._settings = settings
        self._consumer = AIOKafkaConsumer(
            **settings.connection(),
            group_id=f"{work.names.requests}.workers",
            session_timeout_ms=round(settings.session_seconds * 1000),
            heartbeat_interval_ms=round(settings.session_seconds * 1000 / 3),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=settings.max_in_flight,
            fetch_max_wait_ms=_FETCH_WAIT_MS,
        )
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._partitions: dict[TopicPartition, Partition] = {}
        self._last_of_key: dict[tuple[TopicPartition, bytes], asyncio.Task[None]] = {}
        self._loop: asyncio.Task[None] | None = None
        self._commits = asyncio.Lock()
        self._assigned = self._stuck = False

    async def start(self) -> None:
        """Begin to work.

        Raises:
            KafkaError: the broker can't be reached.
        """
        self._consumer.subscribe([self._names.requests, *self._names.retries], listener=self)
        await self._consumer.start()
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Abandon messages in progress to other members, and commit finished ones."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await self._leave(self._partitions.values())
        await self._commit()
        await self._consumer.stop()

    @property
    def is_ready(self) -> bool:
        """Whether it has its share of the topics, and no message is stuck."""
        return (
            self._loop is not None and not self._loop.done() and self._assigned and not self._stuck
        )

    async def _run(self) -> None:
        committed_at = time.monotonic()
        while True:
            try:
                found = await self._consumer.getmany(timeout_ms=_POLL_MS)
            except Exception:  # a broker that is away comes back
                _log.exception("messages could not be fetched")
                await asyncio.sleep(_FIRST_PAUSE_SECONDS)
                continue
            for place, records in found.items():
                for record in records:
                    self._take(ReceivedMessage.of(record))
                self._pause_if_full(place)
            if time.monotonic() - committed_at > _BETWEEN_COMMITS_SECONDS:
                await self._commit()
                committed_at = time.monotonic()

    def _take(self, received: ReceivedMessage) -> None:
        place = received.place
        partition = self._partitions.setdefault(place, Partition())
        key = (place, received.key or b"")
        before = self._last_of_key.get(key) if received.key else None
        task = asyncio.create_task(self._work_on(received, before))
        partition.add(received.offset, task)
        self._last_of_key[key] = task
        task.add_done_callback(lambda done: self._ended(received, key, done))

    def _ended(
        self, received: ReceivedMessage, key: tuple[TopicPartition, bytes], task: asyncio.Task[None]
    ) -> None:
        if self._last_of_key.get(key) is task:
            del self._last_of_key[key]
        partition = self._partitions.get(received.place)
        if partition is None or partition.tasks.get(received.offset) is not task:
            return  # it is another's by now
        if task.cancelled():
            return  # only by `_leave`: every other cancellation is handled as a failure
        if error := task.exception():
            # Not done, and not to be lost: it is held, and seen in the group's lag.
            self._stuck = True
            _log.error("a message is stuck", message=received.id, exc_info=error)
            return
        del partition.tasks[received.offset]
        place = received.place
        if place in self._consumer.paused() and len(partition.tasks) < self._settings.max_in_flight:
            self._consumer.resume(place)

    def _pause_if_full(self, place: TopicPartition) -> None:
        full = len(self._partitions[place].tasks) >= self._settings.max_in_flight
        if full and place in self._consumer.assignment():
            self._consumer.pause(place)

    async def _work_on(self, received: ReceivedMessage, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        if received.topic in self._names.retries:
            await asyncio.sleep(min(received.wait_seconds, max(self._settings.retry_seconds)))
        context.attach(propagate.extract(received.trace))  # this task's own; with its baggage
        with (
            _tracer.start_as_current_span(
                f"process {received.topic}",
                kind=trace.SpanKind.CONSUMER,
                attributes={"messaging.system": "kafka", "messaging.message.id": received.id},
            ) as span,
            structlog.contextvars.bound_contextvars(message=received.id),
        ):
            async with self._slots:
                caused, outcome = await self._do(received)
            try:
                await self._sender.send(caused)
            except MessageSizeTooLargeError:
                words = "what the message causes is larger than the topics take"
                error = RequestError(words, reason=Reason.PAYLOAD_TOO_LARGE)
                outcome = "dead"
                await self._sender.send([dead(received, self._names.dead_letters, error)])
            span.set_attribute("vtryon.wire.call_status", outcome)
        _done.add(1, {"topic": self._names.requests, "outcome": outcome})

    async def _do(self, received: ReceivedMessage) -> tuple[Sequence[Message], str]:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self._do_once(received)
            except (UnavailableError, OverloadedError) as error:
                _waits.add(1, {"topic": self._names.requests, "reason": str(error.reason)})
                _log.info("waiting", reason=error.reason, words=error.message, seconds=pause)
                given = getattr(error, "retry_after_seconds", 0.0)
                await asyncio.sleep(max(pause, min(given, _LONGEST_PAUSE_SECONDS)))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _do_once(self, received: ReceivedMessage) -> tuple[Sequence[Message], str]:
        try:
            return await self._work.handle(received), "done"
        except (UnavailableError, OverloadedError):
            raise
        except VtryonError as error:
            return await self._give_up(received, error)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_being_cancelled():
                raise  # the worker leaves the message to others
            _log.exception("the bridge failed")
            words = f"the bridge failed; its log has the cause under message {received.id}"
            return await self._give_up(received, StageError(words))

    async def _give_up(
        self, received: ReceivedMessage, error: VtryonError
    ) -> tuple[Sequence[Message], str]:
        """Try again later, or say that it never will be done, and keep it."""
        retries = self._names.retries
        if isinstance(error, StageError) and received.attempt < len(retries):
            delay = self._settings.retry_seconds[received.attempt]
            return [again(received, retries[received.attempt], delay)], "retried"
        _log.warning("a dead letter", reason=error.reason, words=error.message)
        told = await self._work.failed(received, error)
        return [dead(received, self._names.dead_letters, error), *told], "dead"

    async def _commit(self) -> None:
        async with self._commits:
            mine = self._consumer.assignment()
            ready = [
                (place, partition, partition.position)
                for place, partition in self._partitions.items()
                if place in mine and partition.position > partition.committed
            ]
            if not ready:
                return
            try:
                await self._consumer.commit({place: position for place, _, position in ready})
            except KafkaError as error:  # what is not committed comes again
                _log.info("offsets could not be committed", cause=type(error).__name__)
                return
            for _, partition, position in ready:
                partition.committed = position

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Commit finished messages while the partitions are still ours.

        Work continues until the new assignment is known: partitions that stay lose nothing.
        """
        await self._commit()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Abandon lost partitions; kept ones continue after their messages in progress."""
        mine = set(assigned)
        kept = {place: one for place, one in self._partitions.items() if place in mine}
        await self._leave(one for place, one in self._partitions.items() if place not in mine)
        self._partitions = kept
        for place, partition in kept.items():
            # Not from what was committed: nothing could be while nobody had the partition.
            self._consumer.seek(place, partition.behind)
        self._assigned = True

    async def _leave(self, partitions: Iterable[Partition]) -> None:
        tasks = [task for partition in partitions for task in partition.tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
