"""The mesh in the current process, if the server package is installed with the SDK."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import entry_points
from typing import Any

from vtryon import extras
from vtryon.errors import SettingsError


def embedded_mesh(**settings: Any) -> AbstractAsyncContextManager[str]:
    """Start all services in this process; gives the target for `Client`.

    Args:
        settings: of the services, such as `checkpoint`, `device` or `backend`. Without `listen`,
            the address is a private socket.

    Raises:
        SettingsError: the server package is not installed, or something is set up wrongly.
    """
    needed = extras.of_services(["all"], settings.get("backend"))
    extras.require("running without --endpoint (the services inside this process)", needed)
    for entry in entry_points(group="vtryon.embedded"):
        start: Callable[..., AbstractAsyncContextManager[str]] = entry.load()
        return start(**settings)
    raise SettingsError(
        f"the services are not installed beside the SDK: {extras.install_command(['server'])}, "
        "or connect to a server that is running"
    )
