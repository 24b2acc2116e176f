"""Bodies as they arrive: their size, their pace, and the memory that all of them take."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from starlette.types import Message, Receive

from vtryon.catalog import REST
from vtryon.errors import (
    DeadlineError,
    OverloadedError,
    Reason,
    RequestError,
    UnavailableError,
)
from vtryon.threads import run_on_bytes
from vtryon_services.bridges.rest.settings import RestSettings
from vtryon_services.runtime.metrics import Watched
from vtryon_services.runtime.pace import Pace

_BURST_SECONDS = 1.0


class UploadAbortedError(Exception):
    """The caller closed the connection before its body was complete."""


class Uploads:
    """Counts the bytes that were received and are still held, in all and by caller."""

    def __init__(self, settings: RestSettings) -> None:
        self.settings = settings
        self._arriving: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self.held_bytes = 0
        self._reading: set[asyncio.Timeout] = set()
        self._stopped = False
        self.pace = Pace(settings.body_max_bytes_per_second, _BURST_SECONDS)
        _watched.add(self)

    @property
    def arriving(self) -> int:
        """How many bodies are on their way."""
        return self._arriving.total()

    def stop(self) -> None:
        """Abort the uploads in progress: draining waits only for admitted requests."""
        self._stopped = True
        for limit in self._reading:
            limit.reschedule(0)

    def check_open(self) -> None:
        """Refuse bodies once the server is going away.

        Raises:
            UnavailableError: it is.
        """
        if self._stopped:
            raise UnavailableError("this bridge is going away", reason=Reason.SHUTTING_DOWN)

    @contextmanager
    def reading(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Let `stop` end a body that is being read."""
        self._reading.add(limit)
        try:
            yield
        finally:
            self._reading.discard(limit)

    def open(self, caller: str, limit: int) -> Upload:
        """Create an upload of at most `limit` bytes; its bytes count until it ends."""
        return Upload(self, caller, limit)

    def begin(self, caller: str) -> Callable[[], None]:
        """Count an upload in progress; return the function that ends it.

        Raises:
            OverloadedError: the client has too many.
        """
        limit = self.settings.max_uploads_per_caller
        if self._arriving[caller] >= limit:
            raise OverloadedError(
                f"{limit} bodies of this caller are on their way, which is the limit; "
                "try again when one is complete",
                metadata={"max_uploads_per_caller": str(limit)},
            )
        self._arriving[caller] += 1
        return lambda: self._take(self._arriving, caller, 1)

    def hold(self, caller: str, size: int) -> None:
        """Count bytes that were received."""
        self.held_bytes += size
        self._held[caller] += size

    def check_room(self, caller: str, size: int) -> None:
        """Check the total of held bytes; a single body is always accepted.

        Raises:
            OverloadedError: a body of this size exceeds the limit.
        """
        settings = self.settings
        for held, limit, whose in (
            (self.held_bytes, settings.max_bodies_bytes, "all callers"),
            (self._held[caller], settings.max_bodies_bytes_per_caller, "this caller"),
        ):
            if size < held > limit:
                raise OverloadedError(
                    f"the bodies of open requests of {whose} have more than {limit} bytes; "
                    "try again later",
                    metadata={"limit_bytes": str(limit)},
                )

    def release(self, caller: str, size: int) -> None:
        """Forget bytes that are held no more."""
        self.held_bytes -= size
        self._take(self._held, caller, size)

    @staticmethod
    def _take(counts: Counter[str], caller: str, count: int) -> None:
        counts[caller] -= count
        if not counts[caller]:
            del counts[caller]


class Upload:
    """One body; as a context manager it accounts for the received bytes until it ends."""

    def __init__(self, uploads: Uploads, caller: str, limit: int) -> None:
        self._uploads = uploads
        self._caller = caller
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0
        self.complete = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def _release(self) -> None:
        self._uploads.release(self._caller, self._size)
        self._pieces, self._size = [], 0

    def check_declared(self, size: int) -> None:
        """Reject a body whose declared length exceeds the limit, before reading it.

        Raises:
            RequestError: it does.
        """
        if size > self._limit:
            raise RequestError(
                f"the body has more than {self._limit} bytes, which is the limit here",
                reason=Reason.PAYLOAD_TOO_LARGE,
                metadata={"limit_bytes": str(self._limit)},
            )

    async def read(self, receive: Receive) -> bytes:
        """Receive the whole body.

        Raises:
            RequestError: it is over the limit.
            OverloadedError: there is no room for it.
            DeadlineError: it is too slow.
            UnavailableError: the server is going away.
            CallerLeftError: the connection is gone.
        """
        self._uploads.check_open()
        end = self._uploads.begin(self._caller)
        settings, loop = self._uploads.settings, asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout_at(began + self._allowed_seconds()) as limit:
                with self._uploads.reading(limit):
                    while self._take(await self._next(receive)):
                        self._uploads.check_open()
                        limit.reschedule(began + self._allowed_seconds())
            self.complete = True
        except TimeoutError:
            self._uploads.check_open()
            raise DeadlineError(
                f"too little of the body arrived in {loop.time() - began:.1f} s; a body "
                f"has {settings.body_grace_seconds:g} s, and longer as it brings "
                f"{settings.body_min_bytes_per_second} bytes per second, but at most "
                f"{settings.body_timeout_seconds:g} s"
            ) from None
        finally:
            end()
            if not self.complete:
                self._release()
        pieces, self._pieces = self._pieces, []
        return await run_on_bytes(self._size, b"".join, pieces)

    def _allowed_seconds(self) -> float:
        settings = self._uploads.settings
        earned = self._size / settings.body_min_bytes_per_second
        return min(settings.body_timeout_seconds, settings.body_grace_seconds + earned)

    async def _next(self, receive: Receive) -> Message:
        """Wait until the caller is within its upload rate, and receive the next piece."""
        await asyncio.sleep(self._uploads.pace.take(self._caller, 0))
        return await receive()

    def _take(self, message: Message) -> bool:
        """Keep a piece; tells whether there is more."""
        if message["type"] == "http.disconnect":
            raise UploadAbortedError
        piece: bytes = message.get("body", b"")
        self._size += len(piece)
        self._uploads.hold(self._caller, len(piece))
        self._uploads.check_room(self._caller, self._size)
        self.check_declared(self._size)
        self._pieces.append(piece)
        self._uploads.pace.take(self._caller, len(piece))
        return bool(message.get("more_body"))


_watched: Watched[Uploads] = Watched(lambda _: REST)
_watched.gauge("vtryon.uploads.open", "Bodies on their way.", lambda one: one.arriving)
_watched.gauge("vtryon.uploads.bytes", "Bytes of bodies held.", lambda one: one.held_bytes)
