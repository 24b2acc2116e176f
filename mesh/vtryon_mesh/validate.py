"""Envoy's own word on a configuration."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vtryon import extras
from vtryon.errors import SettingsError


def find_envoy() -> Path:
    """Find Envoy: next to this Python, or on PATH.

    Raises:
        SettingsError: there is no Envoy.
    """
    beside = Path(sys.executable).with_name("envoy")
    found = str(beside) if beside.exists() else shutil.which("envoy")
    if not found:
        raise SettingsError(f"no Envoy: {extras.install_command(['mesh'])}")
    return Path(found)


def validate(config: str) -> None:
    """Have Envoy read a configuration, in YAML.

    Raises:
        SettingsError: it does not hold; the message is Envoy's.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "envoy.yaml"
        path.write_text(config)
        done = subprocess.run(  # noqa: S603
            [find_envoy(), "--mode", "validate", "--log-level", "error", "-c", path],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise SettingsError("\n".join(lines[-5:]))
