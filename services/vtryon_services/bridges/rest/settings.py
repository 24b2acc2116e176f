"""Settings of the REST bridge."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vtryon.types import MAX_GARMENTS, MAX_PICTURE_BYTES
from vtryon_services.bridges.targets import TargetSettings
from vtryon_services.runtime.settings import REST

_PICTURES = 1 + MAX_GARMENTS
_FIELDS_BYTES = 4 * 1024 * 1024


class RestSettings(TargetSettings):
    """Read from VTRYON_REST_… variables."""

    service: ClassVar[str] = REST

    listen: str = Field(default="127.0.0.1:8000", description="host:port to serve on.")
    max_requests: int = Field(
        default=64, ge=1, description="Requests at once; one more is refused before it is read."
    )
    max_body_bytes: int = Field(
        # Base64 in JSON is a third longer than what it stands for.
        default=_PICTURES * MAX_PICTURE_BYTES * 4 // 3 + _FIELDS_BYTES,
        ge=1,
        description="A request's body.",
    )
    max_bodies_bytes: int = Field(
        default=1024 * 1024 * 1024, ge=1, description="The bodies of all requests together."
    )
    keepalive_seconds: float = Field(
        default=15.0,
        gt=0,
        description="A comment goes into an event stream that is silent so long.",
    )
