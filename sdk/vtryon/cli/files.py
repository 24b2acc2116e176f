"""Results as files: whole or not at all, and looked after before the work is done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vtryon.errors import Reason, RequestError, SettingsError
from vtryon.files.regular import read_regular
from vtryon.files.tensors import dump, load
from vtryon.pictures import Picture, write_whole
from vtryon.tensors import Tensor

MAX_TENSORS_BYTES = 1024**3


def check_writable(out: Path) -> None:
    """Look before the work is done: the folder, or the nearest one above that is there.

    Raises:
        SettingsError: the file can't be written.
    """
    try:
        is_folder = out.is_dir()
        out.exists()  # fails where the name is too long
        folder = next(parent for parent in out.absolute().parents if parent.exists())
    except (OSError, ValueError) as error:
        raise _cannot_write(out, getattr(error, "strerror", None) or str(error)) from None
    if is_folder:
        raise _cannot_write(out, "it is a folder")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise _cannot_write(out, f"{folder.name or folder} can't be written to")


def save_picture(picture: Picture, path: Path) -> None:
    """Write a picture.

    Raises:
        SettingsError: it can't be written.
    """
    write_file(path, picture.data)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, facts: Mapping[str, str]) -> None:
    """Write tensors as safetensors, with facts in the header; BF16 becomes FP32.

    Raises:
        SettingsError: the file can't be written.
    """
    write_file(path, dump(tensors, facts))


def write_file(path: Path, data: bytes) -> None:
    """Write a file, and the folders above it; a reader never sees half of it.

    Raises:
        SettingsError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise _cannot_write(path, error.strerror) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        RequestError: the file is not safetensors, exceeds the limit, is not regular, or has an
            element type that the protocol does not support.
    """
    try:
        data = read_regular(path, MAX_TENSORS_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"can't read {path}: {reason}") from error
    if len(data) > MAX_TENSORS_BYTES:
        words = f"{path} has more than {MAX_TENSORS_BYTES} bytes, the limit"
        raise RequestError(words, reason=Reason.PAYLOAD_TOO_LARGE)
    try:
        return load(data)
    except RequestError as error:
        raise RequestError(f"{path}: {error.message}", reason=error.reason) from None


def _cannot_write(path: Path, why: str | None) -> SettingsError:
    return SettingsError(f"can't write {path}: {why}")
