"""The connections of the bridge, and which tenant they speak for."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Annotated, Self

from fastapi import Depends, Request

from vtryon.channel import TENANT_KEY, Channel
from vtryon.client import Client
from vtryon.jobs import Jobs
from vtryon.types import Stage
from vtryon_services.bridges.rest.settings import RestSettings
from vtryon_services.runtime.settings import JOBS


class Doors:
    """One client per target; entered, and closed when left."""

    def __init__(self, settings: RestSettings) -> None:
        self._targets = {name: settings.target(name) for name in (*Stage, JOBS)}
        self._clients: dict[str, Client] = {}
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for target in set(self._targets.values()):
            self._clients[target] = await self._open.enter_async_context(Client(target))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def to(self, service: str, request: Request) -> Client:
        """Give the client of a service, for the tenant whom the edge has named."""
        client = self._clients[self._targets[service]]
        return client.acting_for(request.headers.get(TENANT_KEY, ""))

    def jobs(self, request: Request) -> Jobs:
        """Give the caller's jobs."""
        return self.to(JOBS, request).jobs

    @property
    def pipeline(self) -> Channel:
        """The connection to the pipeline."""
        return self._clients[self._targets[Stage.PIPELINE]].channel


def doors_of(request: Request) -> Doors:
    """Give the app's connections."""
    doors: Doors = request.app.state.doors
    return doors


def settings_of(request: Request) -> RestSettings:
    """Give the app's settings."""
    settings: RestSettings = request.app.state.settings
    return settings


DoorsOf = Annotated[Doors, Depends(doors_of)]
SettingsOf = Annotated[RestSettings, Depends(settings_of)]
