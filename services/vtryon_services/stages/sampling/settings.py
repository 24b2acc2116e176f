"""Settings of the sampler."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vtryon.catalog import CATALOG
from vtryon.types import Stage
from vtryon_services.runtime.settings import SamplerSettings


class SamplingSettings(SamplerSettings):
    """Read from VTRYON_SAMPLING_… variables."""

    service: ClassVar[Stage] = Stage.SAMPLING

    listen: str = Field(
        default=CATALOG[Stage.SAMPLING].address,
        description="Address to serve on: host:port or unix:/path.",
    )
    max_references: int = Field(
        default=4,
        ge=1,
        description="Maximum reference pictures of one request; a request with more is rejected.",
    )
