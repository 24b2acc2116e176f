"""Requests as REST has them, and its events."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from enum import Enum


def events_of(text: str) -> list[tuple[str, dict]]:
    """Read an event stream; comments are none."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def plainly(value: object) -> object:
    """A value as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {key: plainly(one) for key, one in asdict(value).items() if one is not None}
    return [plainly(one) for one in value] if isinstance(value, (list, tuple)) else value


def form_field(value: object) -> object:
    """A value as a form has it."""
    plain = plainly(value)
    if isinstance(plain, dict) or (isinstance(plain, list) and dict in map(type, plain)):
        return json.dumps(plain)
    return [str(one) for one in plain] if isinstance(plain, (list, tuple)) else str(plain)
