"""Type of the setting that names LoRA files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode


def _read(value: object) -> object:
    """Read PATH or NAME=PATH, from a list or separated by commas as the variable has them."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list):
        return value
    files: dict[str, str] = {}
    for item in filter(None, map(str.strip, items)):
        name, separator, path = item.partition("=")
        if not separator or "/" in name:  # a path may have a sign as well
            name, path = "", item
        name = name or Path(path).stem
        if not path:
            raise ValueError(f"{item!r} is not PATH or NAME=PATH")
        if name in files:
            raise ValueError(f"the name {name!r} is there twice")
        files[name] = path
    return files


LoraFiles = Annotated[dict[str, Path], NoDecode, BeforeValidator(_read)]
"""Paths by name."""
