"""The type of settings that name a checkpoint."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

from vtryon.checkpoint_source import Source, parse_source
from vtryon.errors import SettingsError


def _source(value: str | Source | None) -> Source | None:
    try:
        return None if value is None else parse_source(value)
    except SettingsError as error:
        raise ValueError(error.message) from None


OptionalSource = Annotated[Source | None, NoDecode, BeforeValidator(_source)]
"""A folder, hf://org/name[@revision], comfyui:FOLDER, or None: the checkpoint in the package."""
