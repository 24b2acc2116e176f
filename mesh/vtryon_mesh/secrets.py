"""Files that only this user reads."""

from __future__ import annotations

import os
from pathlib import Path


def write_secret(path: Path, data: bytes) -> None:
    """Write a file with mode 0600 and rename it into its place.

    What is there under either name is replaced, whatever its mode.
    """
    scratch = path.with_name(f".{path.name}.part")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    scratch.replace(path)
