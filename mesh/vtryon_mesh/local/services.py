"""Which services a local mesh starts: those that are named, or all that are installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vtryon import extras
from vtryon.catalog import CATALOG, KAFKA
from vtryon_mesh.description import Mesh

_OPTIONAL = {name for name, entry in CATALOG.items() if entry.optional}


@dataclass(frozen=True, slots=True)
class Chosen:
    """Services to start, and those left out because packages are missing.

    Attributes:
        install: the command that installs the missing packages; empty if none are.
    """

    services: list[str]
    left_out: list[str]
    install: str


def choose(named: Sequence[str], mesh: Mesh, backend: str, *, kafka: bool) -> Chosen:
    """Choose services; without names, all except Kafka's bridge, which needs a broker.

    Raises:
        SettingsError: packages are missing of a named or a required service; names them, and the
            command that installs them.
    """
    wanted = list(named) or [name for name in mesh.services if name != KAFKA]
    wanted += [KAFKA] if kafka and KAFKA not in wanted else []
    absent: dict[str, tuple[str, ...]] = {}
    left_out = []
    for name in wanted:
        needed = extras.of_service(name, backend)
        if name in _OPTIONAL and not named and (missing := extras.missing(needed)):
            absent |= missing
            left_out.append(name)
        elif name in mesh.services:
            extras.require(f"`vtryon up` with the service {name}", needed)
    started = [name for name in wanted if name not in left_out]
    return Chosen(started, left_out, extras.install_command(absent) if absent else "")
