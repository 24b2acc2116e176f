"""The open calls of a process: number, tenants, and which have sent no message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from opentelemetry import metrics

from vtryon.errors import OverloadedError, Reason, UnavailableError, VtryonError
from vtryon_services.rpc.fair_limit import FairLimit
from vtryon_services.runtime.settings import ServiceSettings

_ended = metrics.get_meter("vtryon").create_counter(
    "vtryon.calls.ended_early", description="Calls ended by the server, by why."
)
# A start message comes right behind its call. Younger calls are not taken for silent ones.
_SILENT_AFTER_SECONDS = 1.0


class OpenCall:
    """One open call, and the two ways in which the server ends it.

    Attributes:
        tenant: of the call.
        refusal: the error with which the server ends the call, if it does.
    """

    def __init__(self, tenant: str, *, ends_at_drain: bool) -> None:
        self.tenant = tenant
        self.refusal: VtryonError | None = None
        self._ends_at_drain = ends_at_drain
        self._opened = time.monotonic()
        self._silent: asyncio.Timeout | None = None
        self._whole: asyncio.Timeout | None = None

    @property
    def is_work(self) -> bool:
        """Whether a drain waits for it: it has begun, and will end by itself."""
        return self._silent is None and not self._ends_at_drain

    @property
    def is_silent(self) -> bool:
        """Whether its first message should have come, and has not."""
        return self._silent is not None and self.age_seconds > _SILENT_AFTER_SECONDS

    @property
    def age_seconds(self) -> float:
        """Since the call was opened."""
        return time.monotonic() - self._opened

    @asynccontextmanager
    async def within(self, seconds: float) -> AsyncIterator[None]:
        """Bound the whole call.

        Raises:
            TimeoutError: the time is over, or `end` was called.
        """
        async with asyncio.timeout(seconds) as self._whole:
            yield

    @asynccontextmanager
    async def awaiting_start(self, seconds: float) -> AsyncIterator[None]:
        """Bound the wait for the first message.

        Raises:
            TimeoutError: the time is over, or `end` was called.
        """
        try:
            async with asyncio.timeout(seconds) as self._silent:
                yield
        finally:
            self._silent = None

    def end(self, refusal: VtryonError, why: str) -> None:
        """End the call with an error, at its next turn on the event loop."""
        timeout = self._silent or self._whole
        if self.refusal is None and timeout is not None and not timeout.expired():
            self.refusal = refusal
            _ended.add(1, {"why": why})
            timeout.reschedule(asyncio.get_running_loop().time())


class OpenCalls:
    """All calls of one process that are open, bounded and fair among tenants.

    Args:
        settings: of the process.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._max_silent = settings.max_silent_calls
        self._calls: dict[OpenCall, None] = {}
        self._limit = FairLimit(
            "calls", "calls open", settings.max_calls, settings.max_calls_per_tenant
        )
        self.declared = FairLimit(
            "declared_bytes",
            "bytes of payloads declared",
            settings.max_declared_bytes,
            settings.max_declared_bytes_per_tenant,
        )
        self._changed = asyncio.Event()

    @contextmanager
    def enter(self, tenant: str, *, ends_at_drain: bool) -> Iterator[OpenCall]:
        """Open a call until the block is left.

        Raises:
            OverloadedError: too many are open.
        """
        with self._limit.holding(tenant):
            self._end_excess_silent(tenant)
            call = OpenCall(tenant, ends_at_drain=ends_at_drain)
            self._calls[call] = None
            try:
                yield call
            finally:
                del self._calls[call]
                self._changed.set()

    def begin_drain(self) -> None:
        """End the calls that a drain does not wait for."""
        for call in self._calls:
            if not call.is_work:
                call.end(_going_away(), "drain")

    async def wait_for_work(self) -> None:
        """Wait until no call is open but those that a drain does not wait for."""
        while any(call.is_work for call in self._calls):
            self._changed.clear()
            await self._changed.wait()

    def _end_excess_silent(self, tenant: str) -> None:
        """Make room for a new call: of those that stay silent, the oldest go."""
        silent = [call for call in self._calls if call.tenant == tenant and call.is_silent]
        for call in silent[: max(0, len(silent) - self._max_silent + 1)]:
            call.end(_too_many_silent(self._max_silent), "silent")


def _going_away() -> UnavailableError:
    return UnavailableError(
        "the server is going away and waits for no more messages of this call; call again",
        reason=Reason.SHUTTING_DOWN,
    )


def _too_many_silent(limit: int) -> OverloadedError:
    return OverloadedError(
        f"over {limit} calls of this tenant have not sent their first message; "
        "the oldest of them was ended",
        metadata={"limit": str(limit)},
        retry_after_seconds=1.0,
    )
