"""Working sizes of a checkpoint: `geometry.json`, next to its `model_index.json`.

diffusers keeps these as constants of a pipeline module; they belong to the checkpoint.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vtryon.types import Profile
from vtryon_services.engine.defaults import DEFAULTS, Defaults
from vtryon_services.engine.refusals import corrupt

FILE_NAME = "geometry.json"


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}×{self.height}"


class PreviewMap(BaseModel):
    """A linear map from the channels of x0 to RGB in 0 to 1, fitted when the model was trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]


class Geometry(BaseModel):
    """Areas in pixels, sides in multiples; without a file, those of Qwen-Image-Edit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fit: Literal["area", "pad"] = "area"
    size: Size | None = None
    reference_area: int = Field(default=1024 * 1024, gt=0)
    condition_area: int = Field(default=384 * 384, gt=0)
    reference_multiple: int = Field(default=32, gt=0, multiple_of=16)
    max_target_area: int = Field(default=2048 * 2048, gt=0)
    defaults: dict[Profile, Defaults] = {}
    preview: PreviewMap | None = None

    @classmethod
    def load(cls, folder: Path) -> Geometry:
        """Read the file, or use the defaults if there is none.

        Raises:
            SettingsError: the file is unreadable or invalid.
        """
        path = folder / FILE_NAME
        if not path.exists():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise corrupt(f"{FILE_NAME}: {where or 'it'}: {first['msg']}") from error
        except OSError as error:
            raise corrupt(f"{FILE_NAME} can't be read") from error

    def defaults_of(self, profile: Profile) -> Defaults:
        """Return the defaults of a profile: the checkpoint's, or those of `DEFAULTS`."""
        return self.defaults.get(profile) or DEFAULTS[profile]


def size_of_area(area: int, aspect: float, multiple: int) -> Size:
    """Give the size of about `area` pixels at an aspect, each side the nearest multiple.

    Source: `calculate_dimensions` of diffusers' QwenImageEditPlusPipeline.
    """
    width = math.sqrt(area * aspect)
    height = width / aspect
    width, height = (max(multiple, round(side / multiple) * multiple) for side in (width, height))
    return Size(width, height)
