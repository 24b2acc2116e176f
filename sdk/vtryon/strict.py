"""Options of a try-on as people write them in files: checked by type, never converted silently.

`True` is not 1, 2.9 is not 2, and a list is not text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from vtryon.types import Profile

_WHOLE = re.compile(r"[+-]?[0-9]+", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


def text(value: Any) -> str:
    """Take text.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is not text")
    return value


def whole(value: Any) -> int:
    """Take a whole number; 2.0 is one.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{_shown(value)} is not a whole number")
    return value


def number(value: Any) -> float:
    """Take a finite number.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{_shown(value)} is not a number")
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return float(value)


def numbers(value: Any) -> tuple[float, ...]:
    """Take a list of finite numbers.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{_shown(value)} is not a list of numbers")
    return tuple(map(number, value))


def profile(value: Any) -> Profile:
    """Take the name of a profile.

    Raises:
        ValueError: there is no such profile.
    """
    if not isinstance(value, str) or value not in {*Profile}:
        raise ValueError(f"{_shown(value)} is not a profile; there are {', '.join(Profile)}")
    return Profile(value)


OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "prompt": text,
    "negative_prompt": text,
    "steps": whole,
    "true_cfg_scale": number,
    "seed": whole,
    "width": whole,
    "height": whole,
    "profile": profile,
    "strength": number,
    "sigmas": numbers,
}


def from_cell(name: str, cell: str, *, decimal_comma: bool = False) -> Any:
    """Take an option from a cell of a table, where everything is text.

    Args:
        name: the option.
        cell: its text.
        decimal_comma: whether numbers may be written as 2,5.

    Raises:
        ValueError: the text is not what the option takes.
    """
    kind = OPTIONS[name]
    if kind is whole and _WHOLE.fullmatch(cell.strip()):
        return int(cell)
    if kind is number:
        written = cell.strip().replace(",", ".") if decimal_comma else cell.strip()
        if _NUMBER.fullmatch(written):
            return number(float(written))
    if kind is numbers:
        return tuple(from_cell("strength", one) for one in cell.split())
    return kind(cell)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:39]}…"
