"""The connections of the bridge, and which tenant they speak for."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from vtryon.catalog import JOBS
from vtryon.client import Client
from vtryon.jobs import Jobs
from vtryon.types import Stage
from vtryon.wire.channel import TENANT_KEY, Channel
from vtryon_services.bridges.rest.settings import RestSettings
from vtryon_services.bridges.targets import Clients


class RequestClients(Clients):
    """The clients, as requests want them."""

    def to(self, service: str, request: Request) -> Client:
        """Return the client of a service, for the tenant named by the edge."""
        return self.of(service).acting_for(request.headers.get(TENANT_KEY, ""))

    def jobs(self, request: Request) -> Jobs:
        """Give the caller's jobs."""
        return self.to(JOBS, request).jobs

    @property
    def pipeline(self) -> Channel:
        """The connection to the pipeline."""
        return self.of(Stage.PIPELINE).channel


def clients_of(request: Request) -> RequestClients:
    """Give the app's connections."""
    clients: RequestClients = request.app.state.clients
    return clients


def settings_of(request: Request) -> RestSettings:
    """Give the app's settings."""
    settings: RestSettings = request.app.state.settings
    return settings


ClientsOf = Annotated[RequestClients, Depends(clients_of)]
SettingsOf = Annotated[RestSettings, Depends(settings_of)]
