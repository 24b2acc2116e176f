"""The stages as the pipeline calls them: over the network, or in its own process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import grpc

from vtryon.events import Event
from vtryon.stages import Decoding, LatentEncoder, Sampling, TextEncoder
from vtryon.types import Stage, Start
from vtryon.wire.channel import Channel
from vtryon.wire.payloads import Outgoing
from vtryon_services.pipeline.settings import PipelineSettings

_StageKind = type[LatentEncoder | TextEncoder | Sampling | Decoding]
_WIRE: Mapping[Stage, _StageKind] = {
    Stage.LATENT_ENCODER: LatentEncoder,
    Stage.TEXT_ENCODER: TextEncoder,
    Stage.SAMPLING: Sampling,
    Stage.DECODING: Decoding,
}
_READY = grpc.ChannelConnectivity.READY
_FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_LOST_SECONDS = 5.0
_REPORT_SECONDS = 0.5


class StageCall(Protocol):
    """A stage at work on one request; leaving it cancels it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    def __aiter__(self) -> AsyncIterator[Event]: ...


class StageClient(Protocol):
    """Client of a stage: over the network, or in the same process."""

    def open(
        self,
        start: Start,
        outgoing: Sequence[Outgoing],
        *,
        timeout_seconds: float,
        request_id: str,
        tenant: str = "",
        content_digest: str = "",
    ) -> StageCall:
        """Make a call."""
        ...

    async def recovered(
        self, silent_seconds: float, remaining_seconds: float, *, answered: bool
    ) -> None:
        """Wait, for a limited time, until the stage accepts connections again.

        Args:
            silent_seconds: since the last event of the failed call, or since its start.
            remaining_seconds: until the request's deadline.
            answered: whether the stage sent an event in this request.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class RemoteStage:
    """A stage over the network.

    Args:
        connect_seconds: how long a request waits for a stage that was never connected.
    """

    def __init__(self, kind: _StageKind, target: str, connect_seconds: float) -> None:
        self._client = kind(Channel(target, between_services=True))
        self._connect_seconds = connect_seconds
        self._was_connected = False

    def open(
        self, start: Start, outgoing: Sequence[Outgoing], *, timeout_seconds: float, **named: Any
    ) -> StageCall:
        """Make a call."""
        self._was_connected |= self._state() is _READY
        return self._client.open(start, outgoing, timeout_seconds=timeout_seconds, **named)

    async def recovered(
        self, silent_seconds: float, remaining_seconds: float, *, answered: bool
    ) -> None:
        """Wait while connections fail: as those to a server that starts, or restarts, do.

        A stage that was connected before may be silent for 5 s in all, so that a caller learns
        within 6 s of a stage that is gone.
        Attempts that get no answer at all are not waited for, as `Channel.connected` would: in a
        partition they end by themselves, and the limits of both would add up.
        """
        self._was_connected |= answered
        limit = _LOST_SECONDS if self._was_connected else self._connect_seconds
        # What is left tells the caller which stage is away, where a deadline would not.
        longest = min(limit - silent_seconds, remaining_seconds - _REPORT_SECONDS)
        until = time.monotonic() + longest
        while (left := until - time.monotonic()) > 0 and self._state() is _FAILED:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._client.channel.grpc.wait_for_state_change(_FAILED)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    def _state(self) -> grpc.ChannelConnectivity:
        return self._client.channel.grpc.get_state(try_to_connect=True)


@dataclass(frozen=True, slots=True)
class StageClients:
    """The four stages, each by its client."""

    by_stage: Mapping[Stage, StageClient]

    @classmethod
    def connect(
        cls, settings: PipelineSettings, beside: Mapping[Stage, StageClient]
    ) -> StageClients:
        """Use the stages of this process, and connect to the others; connections open on demand."""
        clients: dict[Stage, StageClient] = {}
        for stage, kind in _WIRE.items():
            name = f"{stage.name.lower()}_target"
            if stage in beside and name not in settings.model_fields_set:
                clients[stage] = beside[stage]
            else:
                target, seconds = getattr(settings, name), settings.stage_connect_seconds
                clients[stage] = RemoteStage(kind, target, seconds)
        return cls(clients)

    async def close(self) -> None:
        """Close the connections."""
        for client in self.by_stage.values():
            await client.close()
