"""Retries: when, how often, and in which order.

One layer for all calls of a client. A call rejected for lack of capacity queues and is resent; a
call whose connection breaks before the first event is resent while the budget lasts. A call is
never resent after its caller has seen an event.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import random
import time
from dataclasses import dataclass
from typing import Self
from weakref import WeakValueDictionary

from vtryon.arguments import check_setting
from vtryon.errors import OverloadedError, Reason, SettingsError, UnavailableError, VtryonError
from vtryon.wire.connecting import Connector

_JITTER = 0.25
_FIRST_PAUSE_SECONDS = 0.1
_LEAST_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient a client is.

    Attributes:
        max_wait_seconds: how long a call without `timeout_seconds` waits for a connection and for
            capacity, in all; with a deadline, that is the limit.
        connect_seconds: how long a call waits for a connection, if that is less; None does not
            limit it further.
        overload: whether a call that the server refuses for lack of capacity waits and is sent
            again.
        breaks: how often a call is sent again after its connection broke.
        http_proxy: whether connections go through the proxy that the environment names
            (`http_proxy`, `no_proxy`). Has no effect with a transport.
    """

    max_wait_seconds: float = 120.0
    connect_seconds: float | None = None
    overload: bool = True
    breaks: int = 2
    http_proxy: bool = True

    def __post_init__(self) -> None:
        """Reject negative values and values that are not numbers, by name."""
        _check_least("max_wait_seconds", self.max_wait_seconds, (int, float), "a number")
        if self.connect_seconds is not None:
            _check_least("connect_seconds", self.connect_seconds, (int, float), "a number")
        _check_least("breaks", self.breaks, int, "a whole number")
        check_setting("retry.overload", self.overload, bool, "True or False")
        check_setting("retry.http_proxy", self.http_proxy, bool, "True or False")


def _check_least(name: str, value: float, kind: type | tuple[type, ...], takes: str) -> None:
    check_setting(f"retry.{name}", value, kind, takes)
    if not value >= 0:  # NaN is not, either
        raise SettingsError(f"retry.{name}: takes {takes} of at least 0, not {value}")


NO_RETRY = RetryPolicy(overload=False, breaks=0)
# Of programs that serve others: their callers are the ones to wait and to send again; a proxy of
# the environment is for the world outside, not for services beside one another.
FOR_SERVICES = RetryPolicy(connect_seconds=2.0, overload=False, http_proxy=False)


class RetryBudget:
    """Allows retries for a tenth of the requests, and a few more at once.

    Source: the retry throttling of gRPC, proposal A6, counted per client and not per server.
    """

    def __init__(self, share: float = 0.1, burst: int = 20) -> None:
        self._share = share
        self._burst = burst
        self._tokens = float(burst)

    def earn(self) -> None:
        """Count a request."""
        self._tokens = min(self._burst, self._tokens + self._share)

    def spend(self) -> bool:
        """Count a retry; false where there may be none."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class CapacityQueue:
    """FIFO queue of the calls that wait for capacity.

    Only the head is resent, after the delay that the server asked for; once it is accepted, the
    next one is sent. A full server therefore sees one retry at a time per tenant of a client,
    however many calls wait.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, asyncio.Event]] = []
        self._not_before = 0.0

    def number(self) -> int:
        """Give a call its number: its place in the order."""
        return next(self._numbers)

    def refused(self, retry_after_seconds: float) -> None:
        """Record that the server has no capacity before so many seconds."""
        pause = retry_after_seconds * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311
        self._not_before = time.monotonic() + pause

    async def turn(self, number: int, *, join: bool) -> None:
        """Wait until a call may be sent: at once where no other waits and `join` is false."""
        if not join and not self._waiting:
            return
        moved = self._join(number)
        while True:
            if self._waiting[0][0] != number:
                moved.clear()
                await moved.wait()
            elif (pause := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            else:
                return

    def _join(self, number: int) -> asyncio.Event:
        at = self._at(number)
        if at == len(self._waiting) or self._waiting[at][0] != number:
            self._waiting.insert(at, (number, asyncio.Event()))
        return self._waiting[at][1]

    def _at(self, number: int) -> int:
        return bisect.bisect_left(self._waiting, number, key=lambda entry: entry[0])

    def leave(self, number: int) -> None:
        """Remove a call from the queue: it was accepted or given up."""
        at = self._at(number)
        if at < len(self._waiting) and self._waiting[at][0] == number:
            del self._waiting[at]
            if self._waiting:
                self._waiting[0][1].set()


class Retries:
    """State shared by the calls of a channel: the policy, the budget, and a queue per tenant.

    Queues are per tenant because the server's limits are: a call of a tenant with free capacity
    never waits for rejected calls of another.
    """

    def __init__(self, policy: RetryPolicy, connector: Connector) -> None:
        self.policy = policy
        self.connector = connector
        self.budget = RetryBudget()
        self._lines: WeakValueDictionary[str, CapacityQueue] = WeakValueDictionary()

    def line_of(self, tenant: str) -> CapacityQueue:
        """Give a tenant's line; it exists for as long as a call holds it."""
        return self._lines.setdefault(tenant, CapacityQueue())


class Attempts:
    """The attempts of one call.

    Use as a context manager around the loop of attempts: `ready` before each, `let_in` when the
    first answer came, `again` with the error of one that failed.
    """

    def __init__(self, retries: Retries, timeout_seconds: float | None, tenant: str = "") -> None:
        self._retries = retries
        self._line = retries.line_of(tenant)
        self._timeout_seconds = timeout_seconds
        self._began = time.monotonic()
        self._number = self._line.number()
        self._breaks = 0
        self._pause_seconds = 0.0
        self._answered = False
        self._refusal: OverloadedError | None = None
        retries.budget.earn()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.leave(self._number)

    async def ready(self) -> float | None:
        """Wait until the call may be sent, and give the time left for it; None has no deadline.

        Raises:
            SettingsError: the server can't be connected as the client is set up.
            UnavailableError: the server could not be reached in time.
            OverloadedError: the server had no capacity in time.
        """
        policy, self._answered = self._retries.policy, False
        await asyncio.sleep(self._pause_seconds)
        limit = self._left_seconds if policy.connect_seconds is None else policy.connect_seconds
        await self._retries.connector.ready(min(limit, self._left_seconds))
        if policy.overload:
            await self._turn()
        if self._timeout_seconds is None:
            return None
        return max(_LEAST_SECONDS, self._left_seconds)

    def let_in(self) -> None:
        """Record that the server has answered."""
        self._answered = True
        self._refusal = None
        self._line.leave(self._number)

    def again(self, error: VtryonError, *, idempotent: bool = True) -> bool:
        """Tell whether another attempt follows one that failed, and count it.

        A call that is not idempotent is sent again only where the server refused it.
        """
        self._pause_seconds = 0.0
        if isinstance(error, OverloadedError):
            return self._again_after_refusal(error)
        broke = idempotent and isinstance(error, UnavailableError)
        return broke and self._again_after_break(error)

    def _again_after_refusal(self, error: OverloadedError) -> bool:
        if not self._retries.policy.overload or self._left_seconds <= error.retry_after_seconds:
            return False
        if error.reason is Reason.DEADLINE_UNREACHABLE and self._timeout_seconds is not None:
            return False  # what could not be done in all the time can't be done in less
        self._refusal = error
        self._line.refused(error.retry_after_seconds)
        return True

    def _again_after_break(self, error: VtryonError) -> bool:
        broken = "status" in error.metadata or error.reason is Reason.SHUTTING_DOWN
        if not broken or self._answered or self._breaks >= self._retries.policy.breaks:
            return False
        self._breaks += 1
        pause = _FIRST_PAUSE_SECONDS * 4 ** (self._breaks - 1)
        self._pause_seconds = pause * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311
        return self._left_seconds > self._pause_seconds and self._retries.budget.spend()

    async def _turn(self) -> None:
        join = self._refusal is not None
        try:
            async with asyncio.timeout(self._left_seconds):
                await self._line.turn(self._number, join=join)
        except TimeoutError:
            raise self._refusal or OverloadedError(
                "the server had no capacity for earlier calls of this client until the deadline"
            ) from None

    @property
    def _left_seconds(self) -> float:
        """How long the call may still wait."""
        limit = self._timeout_seconds
        if limit is None:
            limit = self._retries.policy.max_wait_seconds
        return max(0.0, self._began + limit - time.monotonic())
