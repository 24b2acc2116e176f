"""Connections of callers: how many, and how long their headers may take."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vtryon_services.bridges.rest.settings import RestSettings


def protocol_of(settings: RestSettings) -> type[H11Protocol]:
    """Make uvicorn's protocol with the limits of our settings."""

    class Bounded(_Bounded):
        max_connections = settings.max_connections
        header_timeout_seconds = settings.header_timeout_seconds
        idle_timeout_seconds = settings.idle_timeout_seconds

    return Bounded


class _Bounded(H11Protocol):
    max_connections: int
    header_timeout_seconds: float
    idle_timeout_seconds: float

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            self._close_after(self.idle_timeout_seconds)

    def data_received(self, data: bytes) -> None:
        """Read on; a header that has begun has its own time, which more of it does not renew."""
        first = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        super().data_received(data)
        waiting = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if not waiting:
            self._stop()
        elif first or self._timer is None:
            self._close_after(self.header_timeout_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _close_after(self, seconds: float) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
