"""A fixed number of places, and a bounded queue in front of them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Self

from vtryon.errors import OverloadedError
from vtryon_services.runtime.metrics import Watched


class Places:
    """First come, first served; the queue refuses at once when it is full."""

    def __init__(self, stage: str, places: int, max_waiting: int) -> None:
        self.stage = stage
        self._free = places
        self._places = places
        self._max_waiting = max_waiting
        self._waiting: deque[Ticket] = deque()
        self._average_seconds = 0.1
        _watched.add(self)

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return self._places - self._free

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._waiting)

    def check_room(self) -> None:
        """Refuse at the door, before a caller sends its payloads.

        Raises:
            OverloadedError: the queue is full.
        """
        if not self._free and len(self._waiting) >= self._max_waiting:
            raise OverloadedError(
                f"{self._places} requests are served and {len(self._waiting)} are waiting, which "
                "is the limit; try again later",
                metadata={"places": str(self._places), "max_waiting": str(self._max_waiting)},
                retry_after_seconds=self._expected_wait_seconds(),
            )

    def enter(self) -> Ticket:
        """Take a ticket; it has a place already if one is free.

        Raises:
            OverloadedError: the queue is full.
        """
        self.check_room()
        ticket = Ticket(self)
        if self._free and not self._waiting:
            self._free -= 1
            ticket.begin()
        else:
            self._waiting.append(ticket)
        return ticket

    def position(self, ticket: Ticket) -> int:
        """How many are served before a waiting ticket, those running included."""
        return self._waiting.index(ticket) + self._places

    def leave(self, ticket: Ticket) -> None:
        """Give up a place, or a place in the queue."""
        if ticket.has_place:
            self._average_seconds += 0.2 * (ticket.held_seconds - self._average_seconds)
            self._free += 1
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
        while self._free and self._waiting:
            self._free -= 1
            self._waiting.popleft().begin()
        for other in self._waiting:
            other.moved.set()

    def _expected_wait_seconds(self) -> float:
        return max(0.05, self._average_seconds * (len(self._waiting) + 1) / self._places)


class Ticket:
    """A place, or the wait for one.

    Use as ``with places.enter() as ticket``, and iterate it to wait: it gives the number of
    requests ahead, again whenever that changes, and ends when the place is there.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._entered = time.monotonic()
        self._begun: float | None = None
        self.moved = asyncio.Event()

    @property
    def has_place(self) -> bool:
        """True when the wait is over."""
        return self._begun is not None

    @property
    def waited_seconds(self) -> float:
        """From entering to the place, or to now."""
        return (self._begun or time.monotonic()) - self._entered

    @property
    def held_seconds(self) -> float:
        """From the place to now."""
        return time.monotonic() - (self._begun or time.monotonic())

    def begin(self) -> None:
        """Take the place; called by `Places`."""
        self._begun = time.monotonic()
        self.moved.set()

    async def __aiter__(self) -> AsyncIterator[int]:
        while not self.has_place:
            self.moved.clear()
            yield self._places.position(self)
            await self.moved.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._places.leave(self)


_watched: Watched[Places] = Watched(lambda places: str(places.stage))
_watched.gauge("vtryon.places.taken", "Requests being served.", lambda places: places.taken)
_watched.gauge("vtryon.places.waiting", "Requests waiting.", lambda places: places.waiting)
