"""A limit of concurrent requests with a bounded queue, fair among tenants."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Self

from vtryon.errors import OverloadedError
from vtryon_services.runtime.metrics import Watched


class ConcurrencyLimiter:
    """Concurrency limiter: grants permits to the tenants that hold the fewest, FIFO per tenant.

    A full queue rejects requests, except those of a tenant that holds and waits for less than an
    equal share of the permits: it may always queue, so that no tenant starves another. Callers
    without a tenant count as one.

    Args:
        stage: for the metrics.
        max_concurrency: maximum concurrent requests.
        max_waiting: maximum queued requests before rejection.
        reserve: permits beyond `max_concurrency` for tenants with less than an equal share, where
            a permit may be held by a request that does nothing, such as one whose payloads do not
            arrive.
    """

    def __init__(
        self, stage: str, max_concurrency: int, max_waiting: int, *, reserve: int = 0
    ) -> None:
        self.stage = stage
        self._max_concurrency = max_concurrency
        self._max_waiting = max_waiting
        self._reserve = reserve
        self._held: Counter[str] = Counter()
        self._waiting: list[Permit] = []  # in the order in which they are served
        self._average_seconds = 0.1
        _watched.add(self)

    @property
    def taken(self) -> int:
        """Number of permits in use."""
        return self._held.total()

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a permit."""
        return len(self._waiting)

    def check_room(self, tenant: str = "") -> None:
        """Reject a request before its payloads are received.

        Raises:
            OverloadedError: the queue is full.
        """
        full = self.taken >= self._max_concurrency and len(self._waiting) >= self._max_waiting
        if full and not self._is_below_share(tenant):
            raise OverloadedError(
                f"{self.taken} requests are served and {len(self._waiting)} are waiting, which "
                "is the limit; try again later",
                metadata={
                    "max_concurrency": str(self._max_concurrency),
                    "max_waiting": str(self._max_waiting),
                },
                retry_after_seconds=self._expected_wait_seconds(),
            )

    def enter(self, tenant: str = "") -> Permit:
        """Queue for a permit; it is granted at once if one is free.

        Raises:
            OverloadedError: the queue is full.
        """
        self.check_room(tenant)
        permit = Permit(self, tenant)
        self._waiting.append(permit)
        self._advance()
        return permit

    def position(self, permit: Permit) -> int:
        """Number of requests ahead of a waiting one, running ones included."""
        return self._waiting.index(permit) + self._max_concurrency

    def leave(self, permit: Permit) -> None:
        """Return a permit, or leave the queue."""
        if permit.is_granted:
            self._average_seconds += 0.2 * (permit.held_seconds - self._average_seconds)
            self._held[permit.tenant] -= 1
            self._held += Counter()  # forgets tenants that hold nothing
        elif permit in self._waiting:
            self._waiting.remove(permit)
        self._advance()

    def _is_below_share(self, tenant: str) -> bool:
        known = self._held + Counter(permit.tenant for permit in self._waiting)
        others = len(known) - (tenant in known)
        return others > 0 and known[tenant] < max(1, self._max_concurrency // (others + 1))

    def _advance(self) -> None:
        """Grant free permits, and wake the waiting requests, whose positions changed."""
        self._waiting = self._in_order()
        while self._waiting and self._has_permit_for(self._waiting[0].tenant):
            permit = self._waiting.pop(0)
            self._held[permit.tenant] += 1
            permit.grant()
        for other in self._waiting:
            other.moved.set()

    def _has_permit_for(self, tenant: str) -> bool:
        if self.taken < self._max_concurrency:
            return True
        others = len(self._held) - (tenant in self._held)
        share = self._max_concurrency // (others + 1)
        below = others > 0 and self._held[tenant] < max(1, share)
        return below and self.taken < self._max_concurrency + self._reserve

    def _in_order(self) -> list[Permit]:
        """Sort waiting requests: by the usage of their tenant, then by arrival."""
        before: Counter[str] = Counter(self._held)
        ranks: dict[Permit, tuple[int, int]] = {}
        for permit in sorted(self._waiting, key=lambda one: one.number):
            ranks[permit] = (before[permit.tenant], permit.number)
            before[permit.tenant] += 1
        return sorted(self._waiting, key=ranks.__getitem__)

    def _expected_wait_seconds(self) -> float:
        return max(0.05, self._average_seconds * (len(self._waiting) + 1) / self._max_concurrency)


class Permit:
    """A permit, or the wait for one.

    Use as ``with limiter.enter() as permit``, and iterate it to wait: it yields the number of
    requests ahead whenever that changes, and ends when the permit is granted.

    Attributes:
        tenant: of the request.
        number: order of arrival.
    """

    _made = 0

    def __init__(self, limiter: ConcurrencyLimiter, tenant: str) -> None:
        Permit._made += 1
        self.number = Permit._made
        self.tenant = tenant
        self._limiter = limiter
        self._entered = time.monotonic()
        self._begun: float | None = None
        self.moved = asyncio.Event()

    @property
    def is_granted(self) -> bool:
        """True when the wait is over."""
        return self._begun is not None

    @property
    def waited_seconds(self) -> float:
        """Seconds from queueing to the permit, or to now."""
        return (self._begun or time.monotonic()) - self._entered

    @property
    def held_seconds(self) -> float:
        """Seconds since the permit was granted."""
        return time.monotonic() - (self._begun or time.monotonic())

    def grant(self) -> None:
        """Grant the permit; called by `ConcurrencyLimiter`."""
        self._begun = time.monotonic()
        self.moved.set()

    async def __aiter__(self) -> AsyncIterator[int]:
        while not self.is_granted:
            self.moved.clear()
            yield self._limiter.position(self)
            await self.moved.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._limiter.leave(self)


_watched: Watched[ConcurrencyLimiter] = Watched(lambda limiter: str(limiter.stage))
_watched.gauge("vtryon.permits.taken", "Requests being served.", lambda limiter: limiter.taken)
_watched.gauge("vtryon.permits.waiting", "Requests waiting.", lambda limiter: limiter.waiting)
