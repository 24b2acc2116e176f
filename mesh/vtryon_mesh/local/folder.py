"""The folder of a local mesh: it is emptied at each start, so it must be one of ours."""

from __future__ import annotations

import shutil
from pathlib import Path

from vtryon.errors import SettingsError
from vtryon_mesh.local.supervise import is_running

_MARKER = ".vtryon-up"
_NOTE = "Made by `vtryon up`, which empties this folder at every start.\n"


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
    """Make a folder that `check` has let pass anew, with a marker by which it is known again.

    Raises:
        SettingsError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / _MARKER).write_text(_NOTE)
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _MARKER:
                path.unlink()
    except OSError as error:
        raise SettingsError(f"{folder} can't be used: {error}") from error
