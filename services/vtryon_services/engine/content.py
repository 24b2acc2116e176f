"""Digests of files by their content, taken once per file.

A digest is remembered in the user's cache folder by the file's path, size, times and inode, one
small file per digest, so that processes don't get in one another's way. Where that folder can't be
written, every start digests anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

# A file changed less than so long ago may change again within the same tick of the clock.
_SETTLED_SECONDS = 2.0


def content_digest(path: Path) -> str:
    """Give the sha256 of a file's content, remembered if it is the file it was."""
    resolved = path.resolve()
    before = _identity(resolved)
    folder = _folder()
    if folder is None:
        return sha256_of(resolved)
    entry = folder / f"{hashlib.sha256(os.fsencode(resolved)).hexdigest()}.json"
    if (known := _recall(entry, before)) is not None:
        return known
    digest = sha256_of(resolved)
    settled = time.time() - before["ctime_ns"] / 1e9 > _SETTLED_SECONDS
    if settled and _identity(resolved) == before:
        _remember(entry, {**before, "sha256": digest})
    return digest


def sha256_of(path: Path) -> str:
    """Digest a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(path: Path) -> dict[str, int]:
    """Identify a file and its version; its change time can't be set by users."""
    seen = path.stat()
    return {
        "device": seen.st_dev,
        "inode": seen.st_ino,
        "size": seen.st_size,
        "mtime_ns": seen.st_mtime_ns,
        "ctime_ns": seen.st_ctime_ns,
    }


def _folder() -> Path | None:
    """Give the cache folder, by the XDG Base Directory Specification."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # the user has no home
            return None
    return base / "vtryon" / "digests"


def _recall(entry: Path, identity: dict[str, int]) -> str | None:
    try:
        known = json.loads(entry.read_bytes())
        digest = str(known.pop("sha256"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return digest if known == identity and len(digest) == 64 else None


def _remember(entry: Path, content: dict[str, object]) -> None:
    """Write a whole file and move it into place: a reader sees the old one or the new one."""
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=entry.parent, delete=False) as scratch:
            json.dump(content, scratch)
        try:
            Path(scratch.name).replace(entry)
        except OSError:
            Path(scratch.name).unlink()
            raise
