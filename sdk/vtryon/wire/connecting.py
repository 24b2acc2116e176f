"""Waiting for a server: until it can be reached, until it is hopeless, or until time is up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import grpc

from vtryon.errors import DeadlineError, RunCancelledError, SettingsError, UnavailableError
from vtryon.wire.probe import ProbeResult

_log = logging.getLogger("vtryon")
_READY = grpc.ChannelConnectivity.READY
_FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_PROBE_SECONDS = 5.0
_CONFIRM_SECONDS = 0.3
# A caller that gives less than this has learnt nothing about the server.
_TELLING_SECONDS = 1.0


class Connector:
    """Waits for the connection of a channel, which gRPC makes and repairs by itself.

    While gRPC fails to connect, a probe looks for the cause every five seconds. A cause that
    waiting does not mend, seen twice in a row, ends the wait.

    Args:
        channel: the channel.
        target: its address, for messages.
        probe: looks for the cause; None where there is no address to look at.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        target: str,
        probe: Callable[[], Awaitable[ProbeResult]] | None,
    ) -> None:
        self._channel = channel
        self._target = target
        self._probe = probe
        self._connecting: asyncio.Task[None] | None = None
        self._waiting = 0
        self._cause = ""

    async def ready(self, seconds: float) -> None:
        """Wait until the channel is connected.

        Raises:
            SettingsError: it can't be connected as it is set up; the message has the cause.
            UnavailableError: it was not connected in time; the message has the address.
            DeadlineError: the time was too short to connect, and nothing speaks against the server.
            RunCancelledError: the channel was closed.
        """
        if self._channel.get_state(try_to_connect=True) is _READY:
            return
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
        connecting = self._connecting
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(connecting)
        except TimeoutError:
            if not self._cause and seconds < _TELLING_SECONDS:
                raise DeadlineError(
                    f"out of time: {self._target} was not connected within {seconds:.3g} s"
                ) from None
            cause = self._cause or "no connection could be made"
            raise UnavailableError(
                f"{self._target} can't be reached: {cause} (waited {seconds:.3g} s)",
                metadata={"status": grpc.StatusCode.UNAVAILABLE.name},
            ) from None
        finally:
            self._waiting -= 1
            if not self._waiting:
                connecting.cancel()

    async def _connect(self) -> None:
        try:
            while (state := self._channel.get_state(try_to_connect=True)) is not _READY:
                if state is _FAILED and self._probe is not None:
                    await self._diagnose(self._probe)
                await self._change_from(state)
        except grpc.aio.UsageError:
            raise RunCancelledError("the client was closed") from None
        self._cause = ""

    async def _change_from(self, state: grpc.ChannelConnectivity) -> None:
        """Wait for another state; while gRPC fails, which is one state, only for some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PROBE_SECONDS if state is _FAILED else None):
                await self._channel.wait_for_state_change(state)

    async def _diagnose(self, probe: Callable[[], Awaitable[ProbeResult]]) -> None:
        finding = await probe()
        if finding.permanent:
            await asyncio.sleep(_CONFIRM_SECONDS)
            if await probe() == finding:
                raise SettingsError(f"can't connect to {self._target}: {finding.text}")
        if finding.text and not self._cause:
            _log.warning("%s can't be reached yet: %s", self._target, finding.text)
        self._cause = finding.text
