"""What a batch is to do: pairs in a folder, or the lines of a manifest."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtryon.errors import RequestError
from vtryon.pictures import SUFFIXES
from vtryon.types import MAX_GARMENTS

MAX_ENTRIES = 100_000
_FLAT = re.compile(r"(?P<name>.+?)_(?P<part>person|garment.*|prompt)")
_MAX_NAME_BYTES = 200  # with a format's suffix and a scratch file's, it is to fit in 255
_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "prompt": str,
    "negative_prompt": str,
    "steps": int,
    "true_cfg_scale": float,
    "seed": int,
    "width": int,
    "height": int,
    "profile": str,
    "strength": float,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One try-on: its name, which is also its result's, its pictures, and what is said of it."""

    name: str
    person: Path
    garments: tuple[Path, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def key(self, common: Mapping[str, Any]) -> str:
        """Stand for all that decides the result, without reading the pictures.

        Raises:
            RequestError: a picture can't be read.
        """
        facts: list[Any] = [sorted({**common, **self.options}.items())]
        for path in (self.person, *self.garments):
            try:
                found = path.stat()
            except (OSError, ValueError) as error:
                raise RequestError(f"can't read {path.name!r}: {error}") from None
            if not stat.S_ISREG(found.st_mode):
                raise RequestError(f"{path.name!r} is no plain file")
            facts.append([path.name, found.st_size, found.st_mtime_ns])
        text = json.dumps(facts, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def find_entries(source: Path) -> list[Entry]:
    """Give what is to be done, in the order of names or of lines.

    A folder holds folders with `person.*`, `garment*.*` and perhaps `prompt.txt`, or files
    `NAME_person.*` and `NAME_garment*.*`, perhaps with `NAME_prompt.txt`. A manifest is JSONL or
    CSV: `name`, `person`, `garments`, and options of a try-on; paths are relative to it.

    Raises:
        RequestError: names the line or the file that does not hold.
    """
    if source.is_dir():
        found = list(_in_folder(source))
    elif source.suffix in {".jsonl", ".csv"}:
        found = list(_in_manifest(source))
    else:
        raise RequestError(f"{source} is no folder, and ends in neither .jsonl nor .csv")
    if len(found) > MAX_ENTRIES:
        raise RequestError(f"{len(found)} entries; a batch takes {MAX_ENTRIES}")
    seen: set[str] = set()
    for entry in found:
        if entry.name in seen:
            raise RequestError(f"there are two entries {entry.name!r}")
        seen.add(entry.name)
    return found


def _in_folder(folder: Path) -> Iterator[Entry]:
    pairs: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            parts = {one.stem: one for one in sorted(path.iterdir()) if one.name[0] != "."}
            pairs[path.name] = {stem: one for stem, one in parts.items() if _is_part(one)}
        elif _is_part(path) and (named := _FLAT.fullmatch(path.stem)):
            pairs.setdefault(named["name"], {})[named["part"]] = path
    for name, parts in pairs.items():
        garments = tuple(path for part, path in sorted(parts.items()) if part.startswith("garment"))
        if "person" not in parts or not garments:
            continue
        inside = [_inside(folder, path) for path in (parts["person"], *garments)]
        options = {}
        if "prompt" in parts:
            options["prompt"] = parts["prompt"].read_text(encoding="utf-8").strip()
        yield _entry(name, inside[0], tuple(inside[1:]), options, name)


def _is_part(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or path.suffix == ".txt"


def _in_manifest(manifest: Path) -> Iterator[Entry]:
    folder = manifest.parent
    try:
        with manifest.open(encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines) if manifest.suffix == ".csv" else _json_rows(lines)
            for number, row in enumerate(rows, 2 if manifest.suffix == ".csv" else 1):
                yield _from_row(folder, row, f"line {number}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"can't read {manifest.name}: {error}") from None


def _json_rows(lines: Any) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise RequestError(f"line {number} is no JSON object")
        yield row


def _from_row(folder: Path, row: Mapping[str, Any], where: str) -> Entry:
    given = {name: value for name, value in row.items() if value not in (None, "", [])}
    if unknown := set(given) - {"name", "person", "garments", *_OPTIONS}:
        known = ", ".join(["name", "person", "garments", *_OPTIONS])
        raise RequestError(f"{where}: nobody knows {sorted(map(str, unknown))}; there are {known}")
    if "person" not in given:
        raise RequestError(f"{where}: names no person")
    garments = given.get("garments", [])
    named = garments.split(";") if isinstance(garments, str) else garments
    if not isinstance(named, list):
        raise RequestError(f"{where}: garments takes a list of paths")
    paths = [_inside(folder, folder / str(one).strip(), where) for one in [given["person"], *named]]
    options = {}
    for name, kind in _OPTIONS.items():
        if name in given:
            try:
                options[name] = kind(given[name])
            except (TypeError, ValueError):
                raise RequestError(f"{where}: {name} is no {kind.__name__}") from None
    name = str(given.get("name", paths[0].stem))
    return _entry(name, paths[0], tuple(paths[1:]), options, where)


def _entry(
    name: str, person: Path, garments: tuple[Path, ...], options: dict[str, Any], where: str
) -> Entry:
    bad = "/" in name or "\\" in name or "\0" in name or name.startswith(".")
    if bad or not 0 < len(name.encode(errors="replace")) <= _MAX_NAME_BYTES:
        raise RequestError(f"{where}: {name[:40]!r} can't be a result's name")
    if len(garments) > MAX_GARMENTS:
        raise RequestError(f"{where}: {len(garments)} garments; a try-on takes {MAX_GARMENTS}")
    return Entry(name, person, garments, options)


def _inside(folder: Path, path: Path, where: str = "") -> Path:
    """Refuse what leads out of the folder: by `..`, as an absolute path, or by a link."""
    try:
        real, root = path.resolve(), folder.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(f"{where or path.name}: no path: {error}") from None
    if not real.is_relative_to(root):
        raise RequestError(f"{where or folder.name}: {path.name!r} leads out of the folder")
    return real
