"""Text files that people write: manifests, prompts, requests, graphs.

One reader for all of them: regular files of bounded size, UTF-8 or UTF-16 with a byte order mark,
and errors that name the file and the line.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from vtryon.errors import RequestError
from vtryon.files.regular import read_regular

MAX_TEXT_BYTES = 16 * 1024 * 1024
MAX_PROMPT_BYTES = 64 * 1024
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, limit: int = MAX_TEXT_BYTES, *, growing: bool = False) -> str:
    """Read a text file of at most `limit` bytes; line ends become newlines.

    Args:
        path: of the file.
        limit: in bytes.
        growing: the file is still being written; half a character at its end is left out.

    Raises:
        RequestError: it is not a regular file, too large, or not text.
    """
    data = _read_bytes(path, limit)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(data, final=not growing)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RequestError(
            f"{path.name}, line {line}: not {encoding.removesuffix('-sig').upper()} text; "
            "save the file as UTF-8"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise RequestError(f"{path.name}, line {line}: a NUL character; save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, limit: int = MAX_TEXT_BYTES) -> Any:
    """Read a JSON file.

    Raises:
        RequestError: it is not JSON, or names a key of an object twice.
    """
    return parse_json(read_text(path, limit), path.name)


def parse_json(text: str, where: str) -> Any:
    """Parse JSON.

    Args:
        text: the document.
        where: name of the document in errors.

    Raises:
        RequestError: the text is not JSON, or an object has a duplicate key.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise RequestError(f"{where} is not JSON: {error.msg} at {at}") from None
    except RecursionError:
        raise RequestError(f"{where} is not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"{where} is not JSON that can be read: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} stands twice in one object")
        found[name] = value
    return found


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        data = read_regular(path, limit)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"can't read {path.name!r}: {reason}") from None
    if len(data) > limit:
        raise RequestError(f"{path.name!r} has more than {limit} bytes, the limit")
    return data
