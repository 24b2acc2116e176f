"""Headers of safetensors files: names, element types and shapes, without any data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from vtryon_services.engine.refusals import corrupt


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
        key: its name in the file.
        scale: of a weight in fp8 that has one.
    """

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    scale: Stored | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(label: str, path: Path) -> dict[str, Stored]:
    """Read the header of a file; `label` is its name in the checkpoint.

    Raises:
        SettingsError: it is no whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: Stored(path, name, part.get_dtype(), tuple(part.get_shape()))
                for name, part in parts.items()
            }
    except (SafetensorError, OSError) as error:
        raise corrupt(f"{label} is no whole safetensors file") from error
