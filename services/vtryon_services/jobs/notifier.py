"""In-process notifications; changes by other processes are polled."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

WORK = "work"
OUTCOMES = "outcomes"


class Subscription:
    """Whether there was any since it was last waited for."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wake who waits."""
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for a notification or the time limit; true if there was one."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Notifier:
    """In-process notifications by name; changes by other processes are polled."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[Subscription]] = defaultdict(set)

    def notify(self, *names: str) -> None:
        """Notify all subscribers of a name."""
        for name in names:
            for listener in self._listeners.get(name, ()):
                listener.tell()

    @contextmanager
    def subscribe(self, name: str) -> Iterator[Subscription]:
        """Subscribe until the block ends; notifications before the first wait are not missed."""
        subscription = Subscription()
        self._listeners[name].add(subscription)
        try:
            yield subscription
        finally:
            self._listeners[name].discard(subscription)
            if not self._listeners[name]:
                del self._listeners[name]
