"""Manifests: JSONL, and CSV in the dialects that spreadsheets write."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vtryon.batch.entries import BatchEntry, check_name, inside, real_path
from vtryon.errors import RequestError
from vtryon.files import strict
from vtryon.files.text import parse_json, read_text
from vtryon.types import MAX_GARMENTS

MAX_MANIFEST_BYTES = 256 * 1024 * 1024
_OPEN_QUOTE = "unexpected end of data"  # what the csv module says of a quote that nothing closes
_COLUMNS = ("name", "person", "garments", *strict.OPTIONS)


def in_manifest(path: Path, *, growing: bool = False) -> Iterator[BatchEntry]:
    """Give the entries of a manifest.

    Args:
        path: of the manifest, .jsonl or .csv.
        growing: it is still being written: a last line without a line end is left for later,
            unless it is complete JSON.

    Raises:
        RequestError: names the line and the field that is invalid.
    """
    text, is_csv = read_text(path, MAX_MANIFEST_BYTES, growing=growing), _is_csv(path)
    if growing:
        text = _without_half_line(text, is_csv=is_csv)
    rows = _csv_rows(text, growing=growing) if is_csv else _json_rows(text)
    for where, row in rows:
        yield _from_row(path.parent, row, where)


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def _without_half_line(text: str, *, is_csv: bool) -> str:
    """Leave out a last line that may still grow."""
    written, end, last = text.rpartition("\n")
    if not is_csv:
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(last)
            return text
    return written + end


def _json_rows(text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise RequestError(f"{where} is not a JSON object")
        given = {name: value for name, value in row.items() if value is not None}
        _refuse_unknown([*given], where)
        yield where, {name: _option(name, value, where) for name, value in given.items()}


def _option(name: str, value: Any, where: str) -> Any:
    try:
        if name == "garments":
            return value if isinstance(value, list) else strict.text(value).split(";")
        return strict.text(value) if name not in strict.OPTIONS else strict.OPTIONS[name](value)
    except ValueError as error:
        raise RequestError(f"{where}: {name}: {error}") from None


def _csv_rows(text: str, *, growing: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    lines = text.split("\n")
    skipped, delimiter = 0, ""
    if lines[0].lower().startswith("sep=") and len(lines[0]) == len("sep=") + 1:  # Excel's own
        skipped, delimiter = 1, lines[0][-1]
    delimiter = delimiter or _delimiter(lines[0])
    reader = csv.reader((f"{line}\n" for line in lines[skipped:]), delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            where = f"line {skipped + reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                _check_header(header, where)
                continue
            yield where, _from_cells(header, cells, where, decimal_comma=delimiter == ";")
    except csv.Error as error:
        if growing and str(error) == _OPEN_QUOTE:
            return  # the rest of the cell is still to be written
        raise RequestError(f"line {skipped + reader.line_num}: {error}") from None


def _delimiter(header: str) -> str:
    """Choose the delimiter by which the first line has most of the known columns."""

    def known(delimiter: str) -> int:
        return sum(cell.strip(' "') in _COLUMNS for cell in header.split(delimiter))

    return max((",", ";", "\t"), key=known)


def _check_header(header: list[str], where: str) -> None:
    named = [name for name in header if name]
    _refuse_unknown(named, where)
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise RequestError(f"{where}: two columns {', '.join(twice)}")


def _from_cells(
    header: list[str], cells: list[str], where: str, *, decimal_comma: bool
) -> dict[str, Any]:
    """Convert the cells of a row; an empty cell, quoted or not, counts as unset.

    White space alone is a value in a column of text, such as a negative prompt of one space, and
    unset in every other column.
    """
    row = {}
    for place, cell in enumerate(cells):
        name = header[place] if place < len(header) else ""
        if not (cell if strict.OPTIONS.get(name) is strict.text else cell.strip()):
            continue
        if not name:
            raise RequestError(f"{where}: cell {place + 1} is in a column without a name")
        try:
            if name in strict.OPTIONS:
                row[name] = strict.from_cell(name, cell, decimal_comma=decimal_comma)
            else:
                row[name] = cell.split(";") if name == "garments" else cell
        except ValueError as error:
            raise RequestError(f"{where}: {name}: {error}") from None
    return row


def _refuse_unknown(names: list[str], where: str) -> None:
    if unknown := sorted(set(names) - {*_COLUMNS}):
        raise RequestError(
            f"{where}: unknown {', '.join(map(repr, unknown))}; known: {', '.join(_COLUMNS)}"
        )


def _from_row(folder: Path, row: Mapping[str, Any], where: str) -> BatchEntry:
    if not row.get("person"):
        raise RequestError(f"{where}: names no person")
    try:
        named = [row["person"], *(strict.text(one) for one in row.get("garments", []))]
        paths = [_path(folder, one.strip()) for one in named if one.strip()]
    except (ValueError, RequestError) as error:
        raise RequestError(f"{where}: {error}") from None
    if len(paths) - 1 > MAX_GARMENTS:
        raise RequestError(f"{where}: {len(paths) - 1} garments; a try-on takes {MAX_GARMENTS}")
    name = check_name(row.get("name", paths[0].stem), where)
    options = {key: row[key] for key in strict.OPTIONS if key in row}
    return BatchEntry(name, paths[0], tuple(paths[1:]), options)


def _path(folder: Path, written: str) -> Path:
    """Accept an absolute path of the manifest's author; keep relative ones inside its folder."""
    path = Path(written)
    return real_path(path) if path.is_absolute() else inside(folder, folder / path)
