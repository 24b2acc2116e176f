"""From the batcher's thread to one request's event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from vtryon.errors import VtryonError
from vtryon_services.engine.batching.batcher import Stepped
from vtryon_services.engine.plan import QueuePosition


class Mailbox:
    """A `Sink` that never makes the batcher wait.

    Iterate it: the iteration ends, or raises, as the request does. Of places in the queue only the
    newest is kept; steps are all kept, and are few.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._items: deque[QueuePosition | Stepped] = deque()
        self._over = False
        self._error: VtryonError | None = None

    @property
    def is_empty(self) -> bool:
        """True when nothing newer has come."""
        return not self._items

    def on_queued(self, position: QueuePosition) -> None:
        """Keep a place in the queue, in place of an older one."""
        with contextlib.suppress(IndexError):  # the reader may empty it at any moment
            if isinstance(self._items[-1], QueuePosition):
                self._items.pop()
        self._put(position)

    def on_step(self, step: Stepped) -> None:
        """Keep a step."""
        self._put(step)

    def on_end(self, error: VtryonError | None) -> None:
        """Mark the end of the stream."""
        self._error = error
        self._over = True
        self._notify()

    async def __aiter__(self) -> AsyncIterator[QueuePosition | Stepped]:
        while True:
            while self._items:
                yield self._items.popleft()
            if self._over and not self._items:
                break
            await self._wake.wait()
            self._wake.clear()
        if self._error is not None:
            raise self._error

    def _put(self, item: QueuePosition | Stepped) -> None:
        self._items.append(item)
        self._notify()

    def _notify(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._wake.set)
