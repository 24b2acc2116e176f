"""Data sets in the layouts of VITON-HD and DressCode, by their lists of pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vtryon.batch.entries import (
    BatchEntry,
    Found,
    Layout,
    check_name,
    inside,
    picture_problem,
    real_path,
    visible_files,
)
from vtryon.errors import RequestError
from vtryon.files.text import read_text

_CATEGORIES = ("dresses", "lower_body", "upper_body")


@dataclass(frozen=True, slots=True)
class _FolderPart:
    """A part of a data set: the folder of people or garments, and its file name prefix."""

    people: Path
    garments: Path
    prefix: str = ""


def in_dataset(folder: Path, layout: Layout, *, growing: bool = False) -> Found:
    """Find the pairs of a data set; a pair in several lists is one entry.

    Where there are no lists, a garment without a person is an entry with a problem, as a person
    without a garment is. Files that no entry uses are named.

    Args:
        folder: of the data set.
        layout: VITON-HD's or DressCode's.
        growing: lists are still being written: a last line of one name is left for later.

    Raises:
        RequestError: a line of a list is not two file names.
    """
    find = _viton if layout is Layout.VITON_HD else _dresscode
    pairs = find(folder, growing=growing)
    entries: dict[str, BatchEntry] = {}
    folders: set[Path] = set()
    for part, person, garment in pairs:
        entry = _entry(folder, part, person, garment)
        entries.setdefault(entry.name, entry)
        folders |= {part.people, part.garments}
    return Found(list(entries.values()), _unused(folder, folders, entries.values()))


def _unused(folder: Path, folders: Iterable[Path], entries: Iterable[BatchEntry]) -> list[str]:
    used = {path for entry in entries for path in (entry.person, *entry.garments)}
    files = (path for one in folders if one.is_dir() for path in visible_files(one))
    return sorted(str(path.relative_to(folder)) for path in files if real_path(path) not in used)


def _viton(folder: Path, *, growing: bool) -> Iterator[tuple[_FolderPart, str, str]]:
    lists = sorted(folder.glob("*pairs*.txt"))
    for path in lists:
        split = folder / path.name.partition("_")[0]  # train_pairs.txt is about train/
        base = split if (split / "image").is_dir() else folder
        for person, garment in _lines(path, growing=growing):
            yield _FolderPart(base / "image", base / "cloth"), person, garment
    if not lists and (folder / "image").is_dir():
        part = _FolderPart(folder / "image", folder / "cloth")
        people, garments = _by_stem(part.people), _by_stem(part.garments)
        for stem in sorted(people | garments):
            default = people.get(stem) or garments[stem]
            yield part, people.get(stem, default), garments.get(stem, default)


def _dresscode(folder: Path, *, growing: bool) -> Iterator[tuple[_FolderPart, str, str]]:
    bases = [folder / name for name in _CATEGORIES if (folder / name).is_dir()] or [folder]
    for base in bases:
        images = base / "images"
        part = _FolderPart(images, images, "" if base is folder else f"{base.name}-")
        lists = sorted(base.glob("*pairs*.txt"))
        for path in lists:
            for person, garment in _lines(path, growing=growing):
                yield part, person, garment
        if not lists and images.is_dir():
            people, garments = _by_stem(images, "_0"), _by_stem(images, "_1")
            for stem in sorted(people | garments):
                suffix = Path(people.get(stem) or garments[stem]).suffix
                person = people.get(stem, f"{stem}_0{suffix}")
                yield part, person, garments.get(stem, f"{stem}_1{suffix}")


def _by_stem(folder: Path, ending: str = "") -> dict[str, str]:
    """Give the files of a folder by their stems, less an ending that these must have."""
    files = list(visible_files(folder)) if folder.is_dir() else []
    return {
        path.stem.removesuffix(ending): path.name for path in files if path.stem.endswith(ending)
    }


def _lines(path: Path, *, growing: bool) -> Iterator[tuple[str, str]]:
    text = read_text(path, growing=growing)
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        words = line.split()
        if growing and len(words) == 1 and number == len(lines) and not text.endswith("\n"):
            return  # the second name is still to be written
        if words and len(words) not in {2, 3}:  # a third is DressCode's category
            raise RequestError(f"{path.name}, line {number}: not the names of two files")
        if words:
            yield words[0], words[1]


def _entry(folder: Path, part: _FolderPart, person: str, garment: str) -> BatchEntry:
    first, second = Path(person).stem, Path(garment).stem
    same = first == second or (first.endswith("_0") and second == f"{first[:-2]}_1")
    name = check_name(part.prefix + (first if same else f"{first}__{second}"), folder.name)
    paths = (part.people / person, part.garments / garment)
    try:
        real = [inside(folder, path) for path in paths]
        missing = [path.name for path in real if not path.is_file()]
        problem = f"missing: {', '.join(missing)}" if missing else ""
        problem = problem if real[0].is_file() else f"no person; {problem}"
        problem = problem or next(filter(None, map(picture_problem, real)), "")
    except RequestError as error:
        return BatchEntry(name, None, problem=error.message)
    return BatchEntry(name, real[0], (real[1],), problem=problem)
