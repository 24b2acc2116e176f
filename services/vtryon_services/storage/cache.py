"""Results kept by the content they were made from."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cachetools import LRUCache
from opentelemetry import metrics

from vtryon.wire.payloads import Buffer

R = TypeVar("R")
_ASKED = 16_384  # questions remembered, for what a tenant may be told
_lookups = metrics.get_meter("vtryon").create_counter(
    "vtryon.cache.lookups", description="Lookups by stage and outcome: hit, joined or miss."
)


@dataclass(slots=True, eq=False)
class _Flight(Generic[R]):
    """Results that are made together, and how many wait for any of them."""

    keys: Sequence[Hashable]
    task: asyncio.Task[Mapping[Hashable, R | Exception]]
    waiting: int = 0


class ResultCache(Generic[R]):
    """LRU cache of results, bounded in bytes; concurrent equal requests are computed once.

    Args:
        stage: for the metric.
        max_bytes: of all results together; 0 disables caching and deduplication.
        size_of: size of a result in bytes.
        per_tenant: whether tenants share no results.
    """

    def __init__(
        self,
        stage: str,
        max_bytes: int,
        size_of: Callable[[R], int],
        *,
        per_tenant: bool = True,
    ) -> None:
        self._stage = stage
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._per_tenant = per_tenant
        self._results: LRUCache[Hashable, R] = LRUCache(max_bytes, getsizeof=size_of)
        self._flights: dict[Hashable, _Flight[R]] = {}
        self._asked: LRUCache[tuple[str, Hashable], bool] = LRUCache(_ASKED)

    async def key(self, tenant: str, buffers: Sequence[Buffer], *others: Hashable) -> Hashable:
        """Compute a result's key: the sha256 of buffers, in a worker thread, and further parts."""

        def work() -> tuple[str, ...]:
            return tuple(hashlib.sha256(buffer).hexdigest() for buffer in buffers)

        return (await asyncio.to_thread(work), others, tenant if self._per_tenant else "")

    def __contains__(self, key: Hashable) -> bool:
        """Whether a result is there, or on its way."""
        return key in self._results or key in self._flights

    def had(self, tenant: str, keys: Sequence[Hashable]) -> bool:
        """Return whether all results exist because of earlier requests of this tenant.

        Requests of other tenants are never revealed.
        """
        found = all(key in self and (tenant, key) in self._asked for key in keys)
        self._asked.update({(tenant, key): True for key in keys})
        return found

    @property
    def bytes_held(self) -> int:
        """Total size of the results."""
        return int(self._results.currsize)

    async def get(
        self, keys: Sequence[Hashable], make: Callable[[Sequence[int]], Awaitable[Sequence[R]]]
    ) -> list[R]:
        """Return the results of `keys`; the missing ones are computed now, as one batch.

        A waiting caller may be cancelled: the computation continues while anyone waits for it.
        After a failure, each result is computed separately: only the failing ones fail.

        Args:
            keys: of the results.
            make: computes the results at these indices of `keys`.
        """
        if not self._max_bytes:
            return list(await make(range(len(keys))))
        found: dict[Hashable, R | Exception] = {}
        wanted = list(dict.fromkeys(keys))
        for key in wanted:
            if (result := self._results.get(key)) is not None:
                found[key] = result
            self._count("hit" if key in found else "joined" if key in self._flights else "miss")
        self._take_off([key for key in wanted if key not in found], keys, make)
        flights = {self._flights[key] for key in keys if key not in found}
        for flight in flights:
            flight.waiting += 1
        try:
            for flight in flights:
                found.update(await asyncio.shield(flight.task))
        finally:
            for flight in flights:
                self._leave(flight)
        return [_unless_failed(found[key]) for key in keys]

    def _take_off(
        self,
        wanted: Sequence[Hashable],
        keys: Sequence[Hashable],
        make: Callable[[Sequence[int]], Awaitable[Sequence[R]]],
    ) -> None:
        """Start the results that are neither cached nor being computed."""
        missing = [key for key in wanted if key not in self._flights]
        if missing:
            places = [keys.index(key) for key in missing]
            flight = _Flight(missing, asyncio.ensure_future(self._make(keys, places, make)))
            self._flights.update(dict.fromkeys(missing, flight))

    def _leave(self, flight: _Flight[R]) -> None:
        flight.waiting -= 1
        if not flight.waiting:
            flight.task.cancel()
            self._land(flight)

    def _land(self, flight: _Flight[R]) -> None:
        for key in flight.keys:
            if self._flights.get(key) is flight:
                del self._flights[key]

    async def _make(
        self,
        keys: Sequence[Hashable],
        places: Sequence[int],
        make: Callable[[Sequence[int]], Awaitable[Sequence[R]]],
    ) -> Mapping[Hashable, R | Exception]:
        try:
            made = await make(places)
        except Exception as error:
            if len(places) == 1:
                return {keys[places[0]]: error}
            alone = [await self._make(keys, [place], make) for place in places]
            return {key: result for one in alone for key, result in one.items()}
        results = {keys[place]: result for place, result in zip(places, made, strict=True)}
        for key, result in results.items():
            if self._size_of(result) <= self._max_bytes:
                self._results[key] = result
        return results

    def _count(self, outcome: str) -> None:
        _lookups.add(1, {"stage": self._stage, "outcome": outcome})


def _unless_failed(result: R | Exception) -> R:
    if isinstance(result, Exception):
        raise result
    return result
