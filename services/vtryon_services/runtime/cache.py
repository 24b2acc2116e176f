"""Results kept by the content they were made from."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cachetools import LRUCache
from opentelemetry import metrics

from vtryon.payloads import Buffer

R = TypeVar("R")
_lookups = metrics.get_meter("vtryon").create_counter(
    "vtryon.cache.lookups", description="Lookups by stage and outcome: hit, joined or miss."
)


@dataclass(slots=True)
class _Flight(Generic[R]):
    """Work under way, and how many wait for it."""

    task: asyncio.Task[R]
    waiting: int = 0


class ResultCache(Generic[R]):
    """Least recently used results, up to so many bytes; equal work under way is done once.

    Args:
        stage: for the metric.
        max_bytes: of all results together; 0 keeps nothing, and joins nothing.
        size_of: how many bytes a result takes.
        per_tenant: whether a tenant meets its own results alone.
    """

    def __init__(
        self,
        stage: str,
        max_bytes: int,
        size_of: Callable[[R], int],
        *,
        per_tenant: bool = False,
    ) -> None:
        self._stage = stage
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._per_tenant = per_tenant
        self._results: LRUCache[Hashable, R] = LRUCache(max_bytes, getsizeof=size_of)
        self._flights: dict[Hashable, _Flight[R]] = {}

    async def key(self, tenant: str, buffers: Sequence[Buffer], *others: Hashable) -> Hashable:
        """Name a result: by the sha256 of buffers, taken beside the event loop, and by the rest."""

        def work() -> tuple[str, ...]:
            return tuple(hashlib.sha256(buffer).hexdigest() for buffer in buffers)

        return (await asyncio.to_thread(work), others, tenant if self._per_tenant else "")

    def __contains__(self, key: Hashable) -> bool:
        """Whether a result is there, or on its way."""
        return key in self._results or key in self._flights

    @property
    def bytes_held(self) -> int:
        """What the results take."""
        return int(self._results.currsize)

    async def get(self, key: Hashable, make: Callable[[], Awaitable[R]]) -> R:
        """Give the result of `key`, made now if it is not there.

        Whoever waits may be cancelled: the work goes on as long as anybody waits for it.
        """
        if not self._max_bytes:
            return await make()
        result = self._results.get(key)
        if result is not None:
            self._count("hit")
            return result
        flight = self._flights.get(key)
        self._count("miss" if flight is None else "joined")
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(self._make(key, make)))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                flight.task.cancel()
                self._flights.pop(key, None)

    async def _make(self, key: Hashable, make: Callable[[], Awaitable[R]]) -> R:
        try:
            result = await make()
        finally:
            if (flight := self._flights.get(key)) and flight.task is asyncio.current_task():
                del self._flights[key]
        if self._size_of(result) <= self._max_bytes:
            self._results[key] = result
        return result

    def _count(self, outcome: str) -> None:
        _lookups.add(1, {"stage": self._stage, "outcome": outcome})
