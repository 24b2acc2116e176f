"""The stages as the pipeline calls them: over the network, or in its own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from vtryon.channel import Channel
from vtryon.events import Event
from vtryon.payloads import Outgoing
from vtryon.stages import Decoding, LatentEncoder, Sampling, TextEncoder
from vtryon.types import Stage, Start
from vtryon_services.pipeline.settings import PipelineSettings

_WIRE = {
    Stage.LATENT_ENCODER: LatentEncoder,
    Stage.TEXT_ENCODER: TextEncoder,
    Stage.SAMPLING: Sampling,
    Stage.DECODING: Decoding,
}


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

    async def close(self) -> None:
        """Let go of connections."""
        ...


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
                clients[stage] = kind(Channel(getattr(settings, name), between_services=True))
        return cls(clients)

    async def close(self) -> None:
        """Close the connections."""
        for client in self.by_stage.values():
            await client.close()
