"""The folder of a local mesh: each start keeps its data and replaces the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

from vtryon.errors import SettingsError
from vtryon_mesh.local.supervise import is_running

_MARKER = ".vtryon-up"
_NOTE = (
    "Made by `vtryon up`, which replaces configurations, certificates and the token in this folder "
    "at every start. Jobs, their pictures, claims and schemas stay.\n"
)
# What each start writes again. All else is data, and stays.
_REBUILT = (
    "certificates",
    "model_repository",
    "token",
    "edge.yaml",
    "*-envoy.yaml",
    "prometheus.yml",
    "supervisord.conf",
    "supervisord.pid",
    "supervisor.sock*",
)
_LOGS, _PREVIOUS_LOGS = "logs", "logs.previous"


def check(folder: Path) -> None:
    """Find out whether a folder can be used.

    Raises:
        SettingsError: it holds something that is not ours, or a mesh runs in it.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / _MARKER).exists():
        raise SettingsError(f"{folder} holds something else; name another --folder")
    if is_running(folder):
        raise SettingsError(
            f"a mesh runs in {folder} already: end it (kill $(cat {folder}/supervisord.pid)), "
            "or name another --folder"
        )


def claim(folder: Path) -> None:
    """Prepare a folder that `check` has accepted, and mark it as one of ours.

    Files of an earlier run are replaced, except its data: the database of jobs, pictures, claims,
    schemas. Its logs move to `logs.previous`.

    Raises:
        SettingsError: the folder can't be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / _MARKER).write_text(_NOTE)
        for pattern in _REBUILT:
            for path in folder.glob(pattern):
                _delete(path)
        _rotate_logs(folder)
    except OSError as error:
        raise SettingsError(f"{folder} can't be used: {error}") from error


def _rotate_logs(folder: Path) -> None:
    if (folder / _LOGS).exists():
        _delete(folder / _PREVIOUS_LOGS)
        (folder / _LOGS).rename(folder / _PREVIOUS_LOGS)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
