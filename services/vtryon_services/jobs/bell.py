"""In-process notifications; changes by other processes are polled."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

WORK = "work"
OUTCOMES = "outcomes"


class News:
    """Whether there was any since it was last waited for."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wake who waits."""
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for news, but not for long; true where there was some."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Bell:
    """Tells listeners of news by name."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[News]] = defaultdict(set)

    def ring(self, *names: str) -> None:
        """Tell that there is news."""
        for name in names:
            for news in self._listeners.get(name, ()):
                news.tell()

    @contextmanager
    def listen(self, name: str) -> Iterator[News]:
        """Subscribe until the block ends; notifications before the first wait are not missed."""
        news = News()
        self._listeners[name].add(news)
        try:
            yield news
        finally:
            self._listeners[name].discard(news)
            if not self._listeners[name]:
                del self._listeners[name]
