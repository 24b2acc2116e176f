"""The last line of a failed command: the error, and the file with its details."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from vtryon.errors import RequestError, SettingsError, VtryonError

_LOG = "errors.log"
_MAX_LOG_BYTES = 1024 * 1024


def report(error: VtryonError) -> int:
    """Print an error of our own in a line; gives the exit code."""
    from vtryon.cli.console import printable  # Rich takes its time to load

    facts = f" [{error.reason}]" if error.reason else ""
    sys.stderr.write(f"error: {printable(error.message + facts)}\n")
    return 2 if isinstance(error, (RequestError, SettingsError)) else 1


def report_unexpected(error: Exception, words: Sequence[str]) -> int:
    """Keep the traceback in a file and print where it is; gives the exit code."""
    kind = type(error).__name__
    try:
        where = f"the details are in {_keep(error, words)}"
    except OSError as refused:
        where = f"the details could not be written ({refused.strerror})"
    sys.stderr.write(f"error: unexpected {kind}; {where}\n")
    return 1


def state_folder() -> Path:
    """Give the folder for logs of this user's commands, by the XDG base directory rules."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "vtryon"


def _keep(error: Exception, words: Sequence[str]) -> Path:
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / _LOG
    if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8", errors="replace") as file:
        # Never the values of options: a prompt may be among them.
        command = " ".join(word.partition("=")[0] for word in words[:2])
        file.write(f"\n{datetime.now(UTC).isoformat()} vtryon {command}\n")
        file.writelines(traceback.format_exception(error))
    return path
