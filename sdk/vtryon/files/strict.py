"""Options of a try-on as people write them in files: checked by type, never converted silently.

`True` is not 1, 2.9 is not 2, and a list is not text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, TypeVar

from vtryon.sampling_options import SAMPLING_OPTIONS
from vtryon.types import (
    GuidanceNorm,
    Lora,
    Numerics,
    Priority,
    Profile,
    ResizeFilter,
    RopeLayout,
    SigmaSchedule,
)

E = TypeVar("E", bound=StrEnum)

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
    try:
        taken = float(value)
    except OverflowError:
        raise ValueError("the number is too large") from None
    if not math.isfinite(taken):
        raise ValueError(f"{value} is not a finite number")
    return taken


def numbers(value: Any) -> tuple[float, ...]:
    """Take a list of finite numbers.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{_shown(value)} is not a list of numbers")
    return tuple(map(number, value))


def loras(value: Any) -> tuple[Lora, ...]:
    """Take a list of LoRAs: objects with a name, and a strength where it is not 1.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{_shown(value)} is not a list of LoRAs")
    return tuple(map(_lora, value))


def _lora(value: Any) -> Lora:
    if not isinstance(value, dict) or not {"name"} <= set(value) <= {"name", "strength"}:
        raise ValueError("a LoRA has a name and a strength")
    strength = value.get("strength")
    return Lora(text(value["name"]), None if strength is None else number(strength))


def lora_of(written: str) -> Lora:
    """Parse NAME or NAME=STRENGTH.

    Raises:
        ValueError: the strength is not a number.
    """
    name, separator, strength = written.rpartition("=")
    if not separator:
        return Lora(written.strip())
    return Lora(name.strip(), _number_of(strength.strip(), decimal_comma=False))


def profile(value: Any) -> Profile:
    """Take the name of a profile.

    Raises:
        ValueError: there is no such profile.
    """
    if not isinstance(value, str) or value not in {*Profile}:
        raise ValueError(f"{_shown(value)} is not a profile; there are {', '.join(Profile)}")
    return Profile(value)


def _name_of(kind: type[E]) -> Callable[[Any], E]:
    def take(value: Any) -> E:
        if not isinstance(value, str) or value not in {*kind}:
            raise ValueError(f"{_shown(value)} is not one of {', '.join(kind)}")
        return kind(value)

    return take


NUMERICS: Mapping[str, Callable[[Any], Any]] = {
    "schedule": _name_of(SigmaSchedule),
    "shift": number,
    "guidance_norm": _name_of(GuidanceNorm),
    "resize": _name_of(ResizeFilter),
    "rope_layout": _name_of(RopeLayout),
}
_KINDS: Mapping[type, Callable[[Any], Any]] = {int: whole, float: number, tuple: numbers}
# Every option of a try-on by the name that files and commands have for it.
OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "prompt": text,
    "negative_prompt": text,
    **{name: _KINDS[kind] for name, (kind, _) in SAMPLING_OPTIONS.items()},
    "width": whole,
    "height": whole,
    "profile": profile,
    "priority": _name_of(Priority),
    "quality": whole,
    "loras": loras,
    **NUMERICS,
}


def arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert options to arguments of `Client.try_on`, with combined numerics.

    Args:
        options: by the names of `OPTIONS`; `numerics` is the base of the individual choices.
    """
    numerics = {"profile", *NUMERICS}
    own = {name: value for name, value in options.items() if name in numerics and value is not None}
    others = {name: value for name, value in options.items() if name not in numerics}
    if own:
        others["numerics"] = replace(options.get("numerics") or Numerics(), **own)
    return others


def from_cell(name: str, cell: str, *, decimal_comma: bool = False) -> Any:
    """Parse an option from a cell of a table, in which every value is text.

    Args:
        name: the option.
        cell: its text.
        decimal_comma: whether numbers may be written as 2,5.

    Raises:
        ValueError: the text is not a value of the option.
    """
    kind = OPTIONS[name]
    if kind is whole and _WHOLE.fullmatch(cell.strip()):
        return int(cell)
    if kind is number:
        return _number_of(cell, decimal_comma=decimal_comma)
    if kind is numbers:
        return tuple(_number_of(one, decimal_comma=False) for one in cell.split())
    if kind is loras:
        return tuple(lora_of(one) for one in cell.split(";") if one.strip())
    return kind(cell)


def _number_of(cell: str, *, decimal_comma: bool) -> float:
    written = cell.strip().replace(",", ".") if decimal_comma else cell.strip()
    return number(float(written) if _NUMBER.fullmatch(written) else cell)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:39]}…"
