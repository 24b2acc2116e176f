"""Entries of a batch, from a folder or a manifest."""

from __future__ import annotations

import hashlib
import json
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import vtryon
from vtryon.errors import RequestError
from vtryon.pictures import SUFFIXES

MAX_ENTRIES = 100_000
OWN_NAMES = frozenset({"contact-sheet", "report"})  # files of the batch itself
_MAX_NAME_BYTES = 200  # with a format's suffix and a scratch file's, it is to fit in 255


class Layout(StrEnum):
    """How a folder's files are arranged."""

    PAIRS = "pairs"
    LOOSE = "loose"
    VITON_HD = "viton-hd"
    DRESSCODE = "dresscode"


LAYOUTS = (
    "pairs: NAME/person.png and NAME/garment.png, or NAME_person.png and NAME_garment.png, perhaps "
    "with prompt.txt; loose: the same in upper or lower case; viton-hd: image/, cloth/ and "
    "*pairs*.txt; dresscode: images/ and *pairs*.txt, perhaps in a folder for each category"
)


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """One try-on of a batch.

    Attributes:
        name: also its result's.
        options: of this try-on alone.
        problem: why it can't be done; empty where it can be tried.
    """

    name: str
    person: Path | None
    garments: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    def key(self, common: Mapping[str, Any]) -> str:
        """Stand for all that the caller decides of the result, without reading the pictures.

        Raises:
            RequestError: the entry can't be done, or a picture can't be read.
        """
        if self.problem or self.person is None:
            raise RequestError(self.problem or "no person")
        facts: list[Any] = [vtryon.__version__, sorted({**common, **self.options}.items())]
        for path in (self.person, *self.garments):
            try:
                found = path.stat()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "invalid path"
                raise RequestError(f"can't read {path.name!r}: {reason}") from None
            if not stat.S_ISREG(found.st_mode):
                raise RequestError(f"{path.name!r} is not a regular file")
            facts.append([path.name, found.st_size, found.st_mtime_ns])
        text = json.dumps(facts, default=str)
        return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Found:
    """Content of a folder or a manifest.

    Attributes:
        unused: files that belong to no entry.
    """

    entries: list[BatchEntry]
    unused: list[str] = field(default_factory=list)


def find_entries(source: Path, layout: Layout = Layout.PAIRS, *, growing: bool = False) -> Found:
    """Find the entries, in the order of names or lines; there may be none yet.

    Args:
        source: a folder or a manifest.
        layout: of a folder.
        growing: lists are still being written: leave an incomplete last line for later.

    Raises:
        RequestError: names the line or the file that is invalid.
    """
    from vtryon.batch.datasets import in_dataset
    from vtryon.batch.folders import in_folder
    from vtryon.batch.manifests import in_manifest

    if source.is_dir() and layout in {Layout.PAIRS, Layout.LOOSE}:
        found = in_folder(source, loose=layout is Layout.LOOSE)
    elif source.is_dir():
        found = in_dataset(source, layout, growing=growing)
    elif source.suffix.lower() in {".jsonl", ".csv"}:
        found = Found(list(in_manifest(source, growing=growing)))
    else:
        raise RequestError(f"{source} is not a folder, and ends in neither .jsonl nor .csv")
    if len(found.entries) > MAX_ENTRIES:
        raise RequestError(f"{len(found.entries)} entries; a batch takes {MAX_ENTRIES}")
    _check_names(found.entries)
    return found


def nothing_found(source: Path) -> RequestError:
    """Make the error for a source without entries."""
    looks = ""
    if source.is_dir():
        inside = {path.name for path in source.iterdir() if path.is_dir()}
        if {"image", "cloth"} <= inside:
            looks = "; this looks like --layout viton-hd"
        elif inside & {"images", "dresses", "upper_body", "lower_body"}:
            looks = "; this looks like --layout dresscode"
    return RequestError(f"{source.name!r} has no entries{looks}. Layouts of a folder: {LAYOUTS}")


def visible_files(folder: Path) -> Iterator[Path]:
    """Return the files of a folder by name, without the hidden files of operating systems."""
    hidden = {"thumbs.db", "desktop.ini"}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.name.lower() not in hidden:
            yield path


def is_picture(path: Path) -> bool:
    """Whether a file's name is that of a picture that can be read."""
    return path.suffix.lower() in SUFFIXES


def picture_problem(path: Path) -> str:
    """Describe the problem with a picture's file name; empty if there is none."""
    if is_picture(path):
        return ""
    return f"{path.name!r} is not a PNG, JPEG or WebP picture; convert it"


def check_name(name: str, where: str) -> str:
    """Give a name in its normal form, if a result can have it.

    Raises:
        RequestError: it can't.
    """
    name = unicodedata.normalize("NFC", name)
    bad = "/" in name or "\\" in name or name.startswith(".")
    bad |= any(unicodedata.category(one) == "Cc" for one in name)
    if bad or not 0 < len(name.encode(errors="replace")) <= _MAX_NAME_BYTES:
        raise RequestError(f"{where}: {name[:40]!r} can't be the name of a result")
    if name.casefold() in OWN_NAMES:
        raise RequestError(f"{where}: {name!r} is the name of a file of the batch itself")
    return name


def inside(folder: Path, path: Path) -> Path:
    """Give the real path of a file in a folder.

    Raises:
        RequestError: it leads out of the folder, by `..`, as an absolute path, or by a link.
    """
    real, root = real_path(path), real_path(folder)
    if not real.is_relative_to(root):
        raise RequestError(f"{path.name!r} leads out of the folder")
    return real


def real_path(path: Path) -> Path:
    """Give a path without links.

    Raises:
        RequestError: it is not a path.
    """
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        raise RequestError(f"{path.name!r} is not a valid path") from None


def _check_names(entries: Iterable[BatchEntry]) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        other = seen.setdefault(entry.name.casefold(), entry.name)
        if other is not entry.name:
            alike = "" if other == entry.name else f" and {other!r}, alike but for case"
            raise RequestError(f"there are two entries {entry.name!r}{alike}")
