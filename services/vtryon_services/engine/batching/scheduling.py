"""Who is in the running batch next, and when a newcomer would be."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count

from vtryon.types import Priority

_arrivals = count()


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """A request as seen by the scheduling policy.

    Attributes:
        deadline: on the clock of the batcher; infinite for none.
        remaining: remaining steps; rows: predictions of one step; tokens: of one row.
        arrived: on the clock; arrival: a number that breaks ties.
    """

    priority: Priority
    tenant: str
    deadline: float
    remaining: int
    rows: int
    tokens: int
    arrived: float
    arrival: int
    charged: bool = False

    @classmethod
    def new(
        cls,
        priority: Priority,
        tenant: str,
        deadline: float,
        size: tuple[int, int, int],
        now: float,
    ) -> QueuedRequest:
        """Make an entry; size is (steps, rows, tokens of a row)."""
        return cls(priority, tenant, deadline, *size, now, next(_arrivals))

    @property
    def cost(self) -> int:
        """Work still to do, in tokens."""
        return self.remaining * self.rows * self.tokens


class SchedulingPolicy:
    """Scheduling policy: INTERACTIVE before BATCH, fair among tenants, then earliest deadline.

    A request that has waited `ageing_seconds` counts as INTERACTIVE, so that nothing starves. A
    running request keeps its slot against its own priority; only a higher priority preempts it.

    Source: fair shares are start-time fair queueing, Goyal, Vin and Cheng 1996: a tenant's virtual
    time is the work started for it, and the smallest goes first.
    """

    def __init__(self, slots: int, ageing_seconds: float) -> None:
        self.slots = slots
        self._ageing = ageing_seconds
        self._served: dict[str, float] = {}

    def pick(
        self, entries: Collection[QueuedRequest], running: Collection[QueuedRequest], now: float
    ) -> list[QueuedRequest]:
        """Choose the requests of the next step: at most as many as there are slots."""
        chosen = self.ranked(entries, running, now)[: self.slots]
        active = {entry.tenant for entry in entries}
        served = {tenant: self._served_to(tenant) for tenant in active}
        for entry in chosen:
            if not entry.charged:
                entry.charged = True
                served[entry.tenant] += entry.cost
        self._served = served
        return chosen

    def ranked(
        self, entries: Collection[QueuedRequest], running: Collection[QueuedRequest], now: float
    ) -> list[QueuedRequest]:
        """Put entries in order: by priority, those that run first, then by fair shares."""
        running = set(running)
        ranked: list[QueuedRequest] = []
        for urgent in (True, False):
            own = [entry for entry in entries if self._is_urgent(entry, now) == urgent]
            ranked += sorted((e for e in own if e in running), key=_by_deadline)
            ranked += self._fair([entry for entry in own if entry not in running])
        return ranked

    def starts(
        self,
        entries: Collection[QueuedRequest],
        running: Collection[QueuedRequest],
        newcomer: QueuedRequest,
        now: float,
    ) -> tuple[int, int]:
        """Tell a newcomer how many are served before it, and after how many steps it begins."""
        ranked = self.ranked([*entries, newcomer], running, now)
        ahead = ranked[: ranked.index(newcomer)]
        return len(ahead), steps_until_free(ahead, self.slots)

    def _is_urgent(self, entry: QueuedRequest, now: float) -> bool:
        return entry.priority is not Priority.BATCH or now - entry.arrived >= self._ageing

    def _fair(self, waiting: Sequence[QueuedRequest]) -> list[QueuedRequest]:
        queues: dict[str, list[tuple[float, int, QueuedRequest]]] = defaultdict(list)
        for entry in waiting:
            heapq.heappush(queues[entry.tenant], (entry.deadline, entry.arrival, entry))
        turns = [(self._served_to(tenant), tenant) for tenant in queues]
        heapq.heapify(turns)
        ordered = []
        while turns:
            served, tenant = heapq.heappop(turns)
            entry = heapq.heappop(queues[tenant])[2]
            ordered.append(entry)
            if queues[tenant]:
                heapq.heappush(turns, (served + entry.cost, tenant))
        return ordered

    def _served_to(self, tenant: str) -> float:
        """A tenant's virtual time; one that was away comes back level with the least served."""
        return self._served.get(tenant, min(self._served.values(), default=0.0))


def steps_until_free(ahead: Sequence[QueuedRequest], slots: int) -> int:
    """Count the steps until a slot is left over by those ahead."""
    if len(ahead) < slots:
        return 0
    free = [0] * slots
    for entry in ahead:
        heapq.heapreplace(free, free[0] + entry.remaining)
    return free[0]


def _by_deadline(entry: QueuedRequest) -> tuple[float, int]:
    return entry.deadline, entry.arrival
