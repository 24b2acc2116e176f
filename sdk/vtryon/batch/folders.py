"""Pairs in a folder: whatever looks like a part of one is in an entry or in its problem."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from vtryon.batch.entries import (
    BatchEntry,
    Found,
    check_name,
    inside,
    is_picture,
    picture_problem,
    visible_files,
)
from vtryon.errors import RequestError
from vtryon.files.text import MAX_PROMPT_BYTES, read_text
from vtryon.types import MAX_GARMENTS

_PART = re.compile(r"person|prompt|garment.*", re.IGNORECASE)
_BEGINNING = re.compile(r"person|prompt|garment", re.IGNORECASE)
_FLAT = re.compile(r"(?P<name>.+)_(?P<part>person|prompt|garment.*?)", re.IGNORECASE)
_PICTURES = {".heic", ".heif", ".avif", ".bmp", ".gif", ".tif", ".tiff"}  # that can't be read
_SHOWN = 5


@dataclass(slots=True)
class _Group:
    """Files of one name."""

    name: str
    parts: dict[str, list[Path]] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)

    def add(self, path: Path, part: str) -> None:
        self.parts.setdefault(part, []).append(path)


def in_folder(folder: Path, *, loose: bool) -> Found:
    """Find the pairs of a folder.

    Raises:
        RequestError: a result can't have an entry's name.
    """
    groups: dict[str, _Group] = {}
    unused: list[str] = []
    for path in visible_files(folder):
        if path.is_dir():
            group = _read_pair(path)
            if group.parts or any(map(_is_like_picture, group.others)):
                _merge(groups, group)
            else:
                unused.append(f"{path.name}/")
        elif named := _FLAT.fullmatch(path.stem):
            group = _Group(_normal(named["name"]))
            group.add(path, named["part"])
            _merge(groups, group)
        else:
            unused.append(path.name)
    entries: list[BatchEntry] = []
    if not any(group.parts for group in groups.values()):
        return Found(entries, sorted([*unused, *groups]))
    for group in groups.values():
        entry, left = _entry(folder, group, loose=loose)
        entries.append(entry)
        unused += [str(path.relative_to(folder)) for path in left]
    return Found(entries, sorted(unused))


def _read_pair(folder: Path) -> _Group:
    group = _Group(_normal(folder.name))
    for path in visible_files(folder):
        if _PART.fullmatch(path.stem) and not path.is_dir():
            group.add(path, path.stem)
        else:
            group.others.append(path)
    return group


def _merge(groups: dict[str, _Group], group: _Group) -> None:
    known = groups.setdefault(group.name, _Group(group.name))
    known.others += group.others
    for part, paths in group.parts.items():
        known.parts.setdefault(part, []).extend(paths)


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_like_picture(path: Path) -> bool:
    return is_picture(path) or path.suffix.lower() in _PICTURES


def _entry(folder: Path, group: _Group, *, loose: bool) -> tuple[BatchEntry, list[Path]]:
    """Make an entry of a group, and give the files that it does not use."""
    name = check_name(group.name, folder.name)
    left = list(group.others)
    try:
        parts = {part: _choose(paths, left) for part, paths in _cased(group, loose=loose).items()}
        garments = [parts[part] for part in sorted(parts) if part.startswith("garment")]
        _check_parts(group, parts, garments)
        person, *rest = [inside(folder, path) for path in (parts["person"], *garments)]
        options = {}
        if "prompt" in parts:
            prompt = inside(folder, parts["prompt"])
            options["prompt"] = read_text(prompt, MAX_PROMPT_BYTES).removesuffix("\n")
    except RequestError as error:
        return BatchEntry(name, None, problem=error.message), left
    return BatchEntry(name, person, tuple(rest), options), left


def _cased(group: _Group, *, loose: bool) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for part, paths in group.parts.items():
        plain = _BEGINNING.sub(lambda one: one[0].lower(), part, count=1)
        if plain != part and not loose:
            raise RequestError(
                f"{paths[0].name!r}: parts are called person, garment and prompt, in lower case; "
                "rename it, or use --layout loose"
            )
        found.setdefault(plain, []).extend(paths)
    return found


def _choose(paths: list[Path], left: list[Path]) -> Path:
    """Choose the file of a part, preferring one of a readable format."""
    usable = [path for path in paths if is_picture(path) or path.suffix.lower() == ".txt"]
    if len(usable) > 1:
        raise RequestError(f"several files for one part: {_named(usable)}")
    chosen = usable[0] if usable else paths[0]
    left += [path for path in paths if path is not chosen]
    return chosen


def _check_parts(group: _Group, parts: dict[str, Path], garments: list[Path]) -> None:
    there = _named([*parts.values(), *group.others])
    if "person" not in parts:
        raise RequestError(f"no person; there are {there}")
    if not garments:
        raise RequestError(f"no garment; there are {there}")
    if len(garments) > MAX_GARMENTS:
        raise RequestError(f"{len(garments)} garments; a try-on takes {MAX_GARMENTS}")
    for path in (parts["person"], *garments):
        if problem := picture_problem(path):
            raise RequestError(problem)
    if "prompt" in parts and parts["prompt"].suffix != ".txt":
        raise RequestError(f"{parts['prompt'].name!r}: a prompt is a file prompt.txt")


def _named(paths: list[Path]) -> str:
    names = [repr(path.name) for path in paths[:_SHOWN]]
    return ", ".join(names) + (" and more" if len(paths) > _SHOWN else "")
