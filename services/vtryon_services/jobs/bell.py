"""News within a process; what others do is found by looking."""

from __future__ import annotations

import asyncio
from collections import defaultdict


class Bell:
    """Wakes who waits for news of something."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def ring(self, name: str) -> None:
        """Tell that there is news."""
        for event in self._waiting.get(name, ()):
            event.set()

    async def wait(self, name: str, seconds: float) -> None:
        """Wait for news, but not for long."""
        event = asyncio.Event()
        self._waiting[name].add(event)
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting[name].discard(event)
            if not self._waiting[name]:
                del self._waiting[name]
