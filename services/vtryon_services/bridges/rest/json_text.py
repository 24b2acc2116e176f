"""JSON from callers, read with limits that hold before anything is built of it."""

from __future__ import annotations

import json
from typing import Any

from vtryon.errors import Reason, RequestError

MAX_DEPTH = 32
MAX_VALUES = 10_000
_MAX_DIGITS = 64
_PIECE = 64 * 1024
_STRUCTURE = (b"[", b"{", b",", b":")


def read_json_text(text: bytes, max_values: int = MAX_VALUES) -> Any:
    """Parse JSON; slow for a large text, so call it in a worker thread.

    The number of brackets, commas and colons bounds the number of values. Those inside texts count
    as well: pictures in base64 have none of them.

    Raises:
        RequestError: the text is not JSON, has too many values, is nested too deep, repeats a key
            of an object, or has a number of too many digits.
    """
    _check_structure(text, max_values)
    try:
        value = json.loads(text, object_pairs_hook=_members, parse_int=_whole)
    except (ValueError, RecursionError):
        raise _malformed("is no JSON") from None
    _check_depth(value)
    return value


def _check_structure(text: bytes, max_values: int) -> None:
    """Count in pieces: a large text never holds the interpreter for long."""
    found = 0
    for start in range(0, len(text), _PIECE):
        found += sum(text.count(one, start, start + _PIECE) for one in _STRUCTURE)
        if found > max_values:
            raise _malformed(f"has more than {max_values} brackets, commas and colons")


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _malformed(f"has a number of more than {_MAX_DIGITS} digits")
    return int(digits)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _malformed("names a member of an object twice")
    return found


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [part for one in level for part in _parts(one)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise _malformed(f"is nested deeper than {MAX_DEPTH} levels")


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _malformed(words: str) -> RequestError:
    return RequestError(f"the JSON {words}", reason=Reason.MESSAGE_MALFORMED)
