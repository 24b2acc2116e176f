"""The one way in which files that a caller names are read: regular files, of bounded size."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MAX_PEM_BYTES = 1024 * 1024  # certificates and keys


def read_regular(path: Path, most: int) -> bytes:
    """Read a regular file; return `most` + 1 bytes of a larger one.

    A pipe without a writer is rejected without blocking, and devices are not read.

    Raises:
        OSError: the file can't be read, or is a pipe, a device or a folder.
        ValueError: the path is invalid.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most + 1)
    finally:
        os.close(descriptor)


def read_pem(path: Path) -> bytes:
    """Read a certificate or a key.

    Raises:
        OSError: it can't be read, is not a regular file, or is too large to be one.
    """
    data = read_regular(path, MAX_PEM_BYTES)
    if len(data) > MAX_PEM_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MAX_PEM_BYTES} bytes, the limit")
    return data
