"""Text files that people write: marks, bounds, kinds of file, and errors with file and line."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

import pytest

from vtryon.errors import RequestError
from vtryon.files import strict
from vtryon.files.text import read_json, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("größer\r\nund röter\r".encode(encoding))
    assert read_text(path) == "größer\nund röter\n"
    path.write_bytes(codecs.BOM_UTF16_BE + "ä".encode("utf-16-be"))
    assert read_text(path) == "ä"


def test_what_is_not_text_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "work.csv"
    path.write_bytes("name\neins\ngr\xf6\xdfer\n".encode("latin-1"))
    with pytest.raises(RequestError, match=r"work\.csv, line 3: not UTF-8 text"):
        read_text(path)
    path.write_bytes("a\nb".encode("utf-16-le"))
    with pytest.raises(RequestError, match=r"work\.csv, line 1: a NUL character"):
        read_text(path)


@pytest.mark.timeout(10)
def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b"x" * 11)
    for name, words in {
        "pipe": "not a regular file",
        "zero": "not a regular file",
        ".": "not a regular file",
        "large": "more than 10 bytes",
        "missing": "No such file",
        "a\0b": "can't read",
    }.items():
        with pytest.raises(RequestError, match=words):
            read_text(tmp_path / name, 10)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"a": }', "line 1, column 7"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "is not JSON that can be read"),
    ],
)
def test_json_that_does_not_hold_is_refused_with_its_place(
    tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "request.json"
    path.write_text(content)
    with pytest.raises(RequestError, match=words):
        read_json(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", None),
        ("prompt", float("nan")),
        ("prompt", ["wear it"]),
        ("prompt", {"en": "wear it"}),
        ("prompt", True),
        ("steps", 2.9),
        ("steps", "2"),
        ("steps", True),
        ("seed", True),
        ("true_cfg_scale", "4"),
        ("true_cfg_scale", float("inf")),
        ("sigmas", 0.5),
        ("sigmas", [0.5, "x"]),
        ("profile", "comfi"),
    ],
)
def test_a_value_of_another_type_than_its_option_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match="is not"):
        strict.OPTIONS[name](value)


def test_cells_of_a_table_are_numbers_only_where_they_look_like_them() -> None:
    assert strict.from_cell("steps", " 4 ") == 4
    assert strict.from_cell("true_cfg_scale", "2.5") == 2.5
    assert strict.from_cell("true_cfg_scale", "2,5", decimal_comma=True) == 2.5
    assert strict.from_cell("sigmas", "1 0.5") == (1.0, 0.5)
    assert strict.from_cell("prompt", " wear 2 ") == " wear 2 "
    for name, cell in [
        ("steps", "2.9"),
        ("steps", "1_000"),
        ("steps", "٤"),
        ("true_cfg_scale", "2,5"),
        ("true_cfg_scale", "nan"),
        ("true_cfg_scale", "1e999"),
    ]:
        with pytest.raises(ValueError, match="is not"):
            strict.from_cell(name, cell)
