"""Which mesh a command talks to: an endpoint, or one inside the command."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vtryon.client import Client
from vtryon.embedded import embedded_mesh
from vtryon.errors import SettingsError
from vtryon.wire.channel import Tls

EndpointOption = Annotated[
    str | None,
    typer.Option(help="host:port of a mesh. Default: run the mesh inside this command."),
]
ServerOption = Annotated[
    str | None,
    typer.Option("--endpoint", help="host:port of a jobs server (`vtryon serve all jobs`)."),
]
TlsOption = Annotated[bool, typer.Option("--tls", help="Connect with TLS.")]
TlsCaOption = Annotated[
    Path | None,
    typer.Option(help="PEM certificates of the authorities that sign the endpoint's certificate."),
]
CheckpointOption = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint for the embedded mesh: a folder in diffusers layout, "
        "hf://org/name[@revision], or comfyui:FOLDER."
    ),
]


@dataclass(frozen=True, slots=True)
class Connection:
    """Connection options of the command line."""

    endpoint: str | None
    tls: bool
    tls_ca: Path | None
    checkpoint: str | None

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Connect; a bearer token for the endpoint is read from VTRYON_TOKEN.

        Raises:
            SettingsError: the options don't go together, or the embedded mesh can't start.
        """
        tls = Tls(ca_path=self.tls_ca) if self.tls or self.tls_ca else None
        token = os.environ.get("VTRYON_TOKEN") if self.endpoint else None
        async with self._target() as target, Client(target, tls=tls, token=token) as client:
            yield client

    @asynccontextmanager
    async def _target(self) -> AsyncIterator[str]:
        if self.endpoint is not None:
            if self.checkpoint is not None:
                raise SettingsError(
                    "--checkpoint is for the embedded mesh; the endpoint has its own"
                )
            yield self.endpoint
            return
        given = {"checkpoint": self.checkpoint} if self.checkpoint else {}
        async with embedded_mesh(**given) as target:
            yield target


def server(endpoint: str | None, tls: bool, tls_ca: Path | None) -> Connection:
    """Return the connection to a server that outlives this command, as jobs need.

    Raises:
        SettingsError: no endpoint is set.
    """
    if endpoint is None:
        raise SettingsError(
            "jobs live in a server: start one (`vtryon serve all jobs`) and give --endpoint "
            "host:port, such as --endpoint 127.0.0.1:50050"
        )
    return Connection(endpoint, tls, tls_ca, None)
