"""Data sets in the layouts of VITON-HD and DressCode, by their lists of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vtryon.batch.entries import (
    Entry,
    Found,
    Layout,
    check_name,
    inside,
    nothing_found,
    picture_problem,
)
from vtryon.errors import RequestError
from vtryon.text_files import read_text

_CATEGORIES = ("dresses", "lower_body", "upper_body")


@dataclass(frozen=True, slots=True)
class _Part:
    """One part of a data set: a folder of people, one of garments, and what names begin with."""

    people: Path
    garments: Path
    prefix: str = ""


def in_dataset(folder: Path, layout: Layout) -> Found:
    """Find the pairs of a data set; a pair in several lists is one entry.

    Raises:
        RequestError: there are none, or a line of a list is not two file names.
    """
    pairs = _viton(folder) if layout is Layout.VITON_HD else _dresscode(folder)
    entries: dict[str, Entry] = {}
    for part, person, garment in pairs:
        entry = _entry(folder, part, person, garment)
        entries.setdefault(entry.name, entry)
    if not entries:
        raise nothing_found(folder)
    return Found(list(entries.values()))


def _viton(folder: Path) -> Iterator[tuple[_Part, str, str]]:
    lists = sorted(folder.glob("*pairs*.txt"))
    for path in lists:
        split = folder / path.name.partition("_")[0]  # train_pairs.txt is about train/
        base = split if (split / "image").is_dir() else folder
        for person, garment in _lines(path):
            yield _Part(base / "image", base / "cloth"), person, garment
    if not lists and (folder / "image").is_dir():
        for path in sorted((folder / "image").iterdir()):
            yield _Part(folder / "image", folder / "cloth"), path.name, path.name


def _dresscode(folder: Path) -> Iterator[tuple[_Part, str, str]]:
    bases = [folder / name for name in _CATEGORIES if (folder / name).is_dir()] or [folder]
    for base in bases:
        images = base / "images"
        part = _Part(images, images, "" if base is folder else f"{base.name}-")
        lists = sorted(base.glob("*pairs*.txt"))
        for path in lists:
            for person, garment in _lines(path):
                yield part, person, garment
        if not lists and images.is_dir():
            for path in sorted(images.glob("*_0.*")):
                yield part, path.name, f"{path.stem[:-2]}_1{path.suffix}"


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if words and len(words) not in {2, 3}:  # a third is DressCode's category
            raise RequestError(f"{path.name}, line {number}: not the names of two files")
        if words:
            yield words[0], words[1]


def _entry(folder: Path, part: _Part, person: str, garment: str) -> Entry:
    first, second = Path(person).stem, Path(garment).stem
    same = first == second or (first.endswith("_0") and second == f"{first[:-2]}_1")
    name = check_name(part.prefix + (first if same else f"{first}__{second}"), folder.name)
    paths = (part.people / person, part.garments / garment)
    try:
        real = [inside(folder, path) for path in paths]
        missing = [path.name for path in real if not path.is_file()]
        problem = f"missing: {', '.join(missing)}" if missing else ""
        problem = problem or next(filter(None, map(picture_problem, real)), "")
    except RequestError as error:
        return Entry(name, None, problem=error.message)
    return Entry(name, real[0], (real[1],), problem=problem)
