"""Consumed and produced messages, and their headers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiokafka import ConsumerRecord, TopicPartition
from opentelemetry import propagate

from vtryon.errors import RequestError, VtryonError
from vtryon.types import Priority
from vtryon.wire.channel import TENANT_KEY
from vtryon.wire.headers import TENANT, TENANT_RULE

CORRELATION, CAUSATION, DEADLINE, PRIORITY = (
    "correlation-id",
    "causation-id",
    "deadline",
    "priority",
)
REASON = "reason"
TRACE = TRACEPARENT, TRACESTATE, BAGGAGE = "traceparent", "tracestate", "baggage"
_LONGEST_TRACE = 4096  # bytes of each; a longer one is dropped: gRPC takes 8 KiB of metadata
ATTEMPT, NOT_BEFORE = "attempt", "not-before"
# Of dead letters: where they were read, and why they came here.
FROM_TOPIC, FROM_PARTITION, FROM_OFFSET = "from-topic", "from-partition", "from-offset"
FAILED_AT, MESSAGE = "failed-at", "message"
_OWN = {ATTEMPT, NOT_BEFORE, REASON, FROM_TOPIC, FROM_PARTITION, FROM_OFFSET, FAILED_AT, MESSAGE}
_LONGEST_VALUE = 1024
_PASSED_ON = (CORRELATION, DEADLINE, PRIORITY, TENANT_KEY)


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message that was read."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]

    @classmethod
    def of(cls, record: ConsumerRecord[bytes, bytes]) -> ReceivedMessage:
        """Convert a consumer's record; of a repeated header, the last one counts."""
        return cls(
            record.topic,
            record.partition,
            record.offset,
            record.key,
            record.value,
            {name: value or b"" for name, value in record.headers},
        )

    @property
    def place(self) -> TopicPartition:
        """Where it was."""
        return TopicPartition(self.topic, self.partition)

    @property
    def id(self) -> str:
        """Name it, for those that it causes."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    def header(self, name: str) -> str:
        """Return a header's text; empty if it is missing."""
        return self.headers.get(name, b"")[:_LONGEST_VALUE].decode("utf-8", "replace")

    @property
    def trace(self) -> dict[str, str]:
        """The trace that it is part of, and its baggage, as `propagate.extract` reads them."""
        given = {name: self.headers.get(name, b"") for name in TRACE}
        return {
            name: value.decode("utf-8", "replace")
            for name, value in given.items()
            if 0 < len(value) <= _LONGEST_TRACE
        }

    @property
    def tenant(self) -> str:
        """Tenant of the message."""
        return self.header(TENANT_KEY)

    @property
    def attempt(self) -> int:
        """How often it was tried before."""
        return _whole(self.header(ATTEMPT))

    @property
    def wait_seconds(self) -> float:
        """How long it is to be left alone."""
        until = self.header(NOT_BEFORE)
        return max(0.0, float(until) / 1000 - time.time()) if until.isdecimal() else 0.0

    def left_seconds(self, limit: float = math.inf) -> float:
        """Return the time until its deadline, at most a limit.

        Raises:
            RequestError: the header is not a timestamp.
        """
        if not (text := self.header(DEADLINE)):
            return limit
        try:
            deadline = datetime.fromisoformat(text)
        except ValueError:
            raise RequestError(f"header {DEADLINE}: is no time in ISO 8601") from None
        if deadline.tzinfo is None:
            deadline = deadline.replace(tzinfo=UTC)
        return min(deadline.timestamp() - time.time(), limit)

    @property
    def priority(self) -> Priority | None:
        """Who goes first where requests wait; None where the message does not say.

        Raises:
            RequestError: the header is no priority.
        """
        if not (text := self.header(PRIORITY)):
            return None
        try:
            return Priority(text)
        except ValueError:
            raise RequestError(f"header {PRIORITY}: takes {' or '.join(Priority)}") from None

    def check_headers(self) -> None:
        """Check the headers that are passed on.

        Raises:
            RequestError: one is too long, or names no tenant.
        """
        for name in _PASSED_ON:
            if (size := len(self.headers.get(name, b""))) > _LONGEST_VALUE:
                words = f"has {size} bytes, and takes at most {_LONGEST_VALUE}"
                raise RequestError(f"header {name}: {words}")
        if self.tenant and not TENANT.fullmatch(self.tenant):
            raise RequestError(f"header {TENANT_KEY}: takes {TENANT_RULE}")

    def passed_on(self) -> dict[str, bytes]:
        """Return the headers of caused messages, without those that are too long."""
        found = {
            name: self.headers[name]
            for name in _PASSED_ON
            if 0 < len(self.headers.get(name, b"")) <= _LONGEST_VALUE
        }
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        traced = {name: value.encode() for name, value in carrier.items()}
        return {**found, CAUSATION: self.id.encode(), **traced}

    def refused(self, error: VtryonError) -> dict[str, bytes]:
        """Give the headers for the answer that it failed."""
        return {**self.passed_on(), REASON: str(error.reason or "").encode()}


@dataclass(frozen=True, slots=True)
class Message:
    """A message to be sent."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes] = field(default_factory=dict)

    def sent_headers(self) -> Sequence[tuple[str, bytes]]:
        """Return the headers in the producer's format."""
        return [(name, value) for name, value in self.headers.items()]


def again(received: ReceivedMessage, topic: str, delay_seconds: float) -> Message:
    """Make the copy of a message for another attempt."""
    due = str(round((time.time() + delay_seconds) * 1000)).encode()
    own = {ATTEMPT: str(received.attempt + 1).encode(), NOT_BEFORE: due}
    return Message(topic, received.key, received.value, {**_first_place(received), **own})


def dead(received: ReceivedMessage, topic: str, error: VtryonError) -> Message:
    """Make the dead letter of a message: its bytes as they were, and why."""
    own = {
        REASON: str(error.reason or "").encode(),
        MESSAGE: error.message[:_LONGEST_VALUE].encode(),
        FAILED_AT: datetime.now(UTC).isoformat().encode(),
        ATTEMPT: str(received.attempt + 1).encode(),
    }
    return Message(topic, received.key, received.value, {**_first_place(received), **own})


def revived(received: ReceivedMessage, topic: str) -> Message:
    """Make a dead letter's message as it was first sent, but for a deadline that is over."""
    dropped = {*_OWN, DEADLINE}
    headers = {name: value for name, value in received.headers.items() if name not in dropped}
    return Message(topic, received.key, received.value, headers)


def _first_place(received: ReceivedMessage) -> dict[str, bytes]:
    """Give all headers, and where the message was first read."""
    place = {
        FROM_TOPIC: received.topic.encode(),
        FROM_PARTITION: str(received.partition).encode(),
        FROM_OFFSET: str(received.offset).encode(),
    }
    return {**place, **received.headers}


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 6 else 0
