"""The page of a try-on's options, from the table that the command line has."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from generators.tables import cell
from vtryon.cli.options import ALL, HELP
from vtryon.types import Lora

_HEAD = """# Options of a try-on

The same names everywhere: keyword arguments of `Client.try_on` and `jobs.create`, fields of REST,
keys of request files, columns of a batch's table, and options of the command line
(`--true-cfg-scale`). For those that are not set the server chooses a value, and reports it in the
`Accepted` event. An option that has no effect is listed in the result's `unused_options`, with the
reason. By REST and in request files, `schedule`, `shift`, `guidance_norm`, `resize` and
`rope_layout` are fields of `numerics`; in Python, of `vtryon.Numerics`. `loras` is a list of
`{"name": …, "strength": …}`, in Python of `vtryon.Lora`; the command line has `--lora` for each,
and a table `silk=0.7; quick` in one cell.

| option | type | meaning |
|---|---|---|
"""
_KINDS = {str: "text", int: "whole number", float: "number", Any: "numbers", Lora: "LoRAs"}


def page() -> str:
    """Write a row per option."""
    return _HEAD + "".join(_row(name) for name in ALL)


def _row(name: str) -> str:
    kind, text = HELP[name]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        shown = ", ".join(f"`{one}`" for one in kind)
    else:
        shown = _KINDS[kind]
    return f"| `{name}` | {shown} | {cell(text)} |\n"
