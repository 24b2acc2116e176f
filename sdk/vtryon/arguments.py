"""Checks of arguments before a request is made of them."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TypeVar

from vtryon.errors import RequestError, Violation

E = TypeVar("E", bound=StrEnum)


def argument_error(argument: str, description: str) -> RequestError:
    """Make the error of an argument whose value can't be used."""
    violation = Violation(argument, description)
    return RequestError(f"{argument}: {description}", violations=(violation,))


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
    elif math.isfinite(timeout_seconds) and timeout_seconds > 0:
        return
    else:
        given = str(timeout_seconds)
    raise argument_error("timeout_seconds", f"takes a positive number of seconds, not {given}")
