"""A lock with one queue per tenant: round robin among tenants, first in, first out in each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """A lock that is fair among tenants: a long queue of one tenant delays another by one turn."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # next tenant first

    @asynccontextmanager
    async def of(self, tenant: str) -> AsyncIterator[None]:
        """Hold the lock during the block."""
        await self._enter(tenant)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, tenant: str) -> None:
        if not self._taken:
            self._taken = True
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.cancelled():  # granted at the moment of the cancellation
                self._leave()
            raise

    def _leave(self) -> None:
        while self._waiting:
            tenant = next(iter(self._waiting))
            queue = self._waiting.pop(tenant)
            granted = queue.popleft()
            if queue:
                self._waiting[tenant] = queue
            if not granted.cancelled():
                granted.set_result(None)
                return
        self._taken = False
