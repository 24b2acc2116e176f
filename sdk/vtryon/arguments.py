"""Checks of arguments before a request is made of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import Any, TypeVar

from vtryon.errors import RequestError, SettingsError, Violation
from vtryon.messages import shown_number

E = TypeVar("E", bound=StrEnum)


def argument_error(argument: str, description: str) -> RequestError:
    """Build the error for an argument with an invalid value."""
    violation = Violation(argument, description)
    return RequestError(f"{argument}: {description}", violations=(violation,))


def check_kind(
    argument: str, value: object, kind: type | tuple[type, ...], takes: str, hint: str = ""
) -> None:
    """Check the type of an argument.

    Args:
        argument: its name.
        value: the value passed.
        kind: the required type.
        takes: name of `kind` in the error.
        hint: an addition to the error, such as how to construct one.

    Raises:
        RequestError: the value has another type.
    """
    if not isinstance(value, kind):
        more = f"; {hint}" if hint else ""
        raise argument_error(argument, f"takes {takes}, not {type(value).__name__}{more}")


def check_setting(setting: str, value: object, kind: type | tuple[type, ...], takes: str) -> None:
    """Check the type of a setting of a connection. True and False are no numbers.

    Raises:
        SettingsError: it is of another type.
    """
    accepts_bool = kind is bool or (isinstance(kind, tuple) and bool in kind)
    if not isinstance(value, kind) or (isinstance(value, bool) and not accepts_bool):
        raise SettingsError(f"{setting}: takes {takes}, not {type(value).__name__}")


def sequence(argument: str, values: Any, of: str) -> tuple[Any, ...]:
    """Return the items of an argument that accepts several, in order.

    Raises:
        RequestError: the value is a single item, text or bytes, or is unordered.
    """
    single = (str, bytes, bytearray, memoryview, Mapping, AbstractSet)
    if isinstance(values, Iterable) and not isinstance(values, single):
        try:
            return tuple(values)
        except TypeError:  # such as an array without dimensions
            pass
    raise argument_error(argument, f"takes a list of {of}, not {type(values).__name__}")


def choice(argument: str, kind: type[E], value: object) -> E | None:
    """Give the member of `kind` for an argument: itself, or its value in any case.

    Raises:
        RequestError: there is no such member.
    """
    if value is None or isinstance(value, kind):
        return value
    if isinstance(value, str) and value.lower() in set(kind):
        return kind(value.lower())
    shown = f"{value!r:.40}" if isinstance(value, str) else type(value).__name__
    raise argument_error(argument, f"takes one of {', '.join(kind)}, not {shown}")


def check_timeout(timeout_seconds: object) -> None:
    """Check a call's deadline.

    Raises:
        RequestError: it is not a positive number of seconds.
    """
    if timeout_seconds is None:
        return
    if isinstance(timeout_seconds, bool) or not isinstance(timeout_seconds, (int, float)):
        given = type(timeout_seconds).__name__
    elif 0 < timeout_seconds <= sys.float_info.max:
        return
    else:
        given = shown_number(timeout_seconds)
    raise argument_error("timeout_seconds", f"takes a positive number of seconds, not {given}")
