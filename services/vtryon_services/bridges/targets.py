"""Which services a bridge calls, where they are, and the connections to them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, Self

from pydantic import Field

from vtryon.catalog import CATALOG, JOBS
from vtryon.client import Client
from vtryon.types import Stage
from vtryon.wire.retry import FOR_SERVICES
from vtryon_services.runtime.addresses import OptionalTarget, Target
from vtryon_services.runtime.settings import ProcessSettings


def _own(service: str) -> Any:
    description = f"host:port of {service}. Empty: the same as pipeline_target."
    return Field(default="", description=description)


class TargetSettings(ProcessSettings):
    """Additional settings of every bridge."""

    pipeline_target: Target = Field(
        default=CATALOG[Stage.PIPELINE].address, description="host:port of the pipeline."
    )
    latent_encoder_target: OptionalTarget = _own("the latent encoder")
    text_encoder_target: OptionalTarget = _own("the text encoder")
    sampling_target: OptionalTarget = _own("the sampler")
    decoding_target: OptionalTarget = _own("the decoder")
    jobs_target: OptionalTarget = _own("the jobs service")

    def target(self, service: str) -> str:
        """Where a service is."""
        own = getattr(self, f"{service.replace('-', '_')}_target")
        return str(own or self.pipeline_target)


class Clients:
    """One client per target; entered, and closed when left."""

    def __init__(self, settings: TargetSettings) -> None:
        self._targets = {name: settings.target(name) for name in (*Stage, JOBS)}
        self._clients: dict[str, Client] = {}
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for target in set(self._targets.values()):
            client = Client(target, retry=FOR_SERVICES)
            self._clients[target] = await self._open.enter_async_context(client)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def of(self, service: str) -> Client:
        """Give the client of a service."""
        return self._clients[self._targets[service]]
