"""Settings of the REST bridge."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vtryon.types import MAX_GARMENTS, MAX_PICTURE_BYTES
from vtryon_services.bridges.targets import TargetSettings
from vtryon_services.runtime.settings import REST

_PICTURES = 1 + MAX_GARMENTS
_FIELDS_BYTES = 4 * 1024 * 1024
_MIB = 1024 * 1024


class RestSettings(TargetSettings):
    """Read from VTRYON_REST_… variables."""

    service: ClassVar[str] = REST

    listen: str = Field(default="127.0.0.1:8000", description="host:port to serve on.")
    allowed_hosts: str = Field(
        default="localhost",
        description="Names of this server in a Host header, between commas; a request for another "
        "name is refused. IP addresses and names without a dot are always allowed. `*` allows "
        "every name and every origin: for a bridge behind an edge that checks them.",
    )
    cors_origins: str = Field(
        default="http://localhost:*,http://127.0.0.1:*",
        description="Origins whose pages may call this server, between commas; `:*` is any port. "
        "A form that another site's page sends is refused.",
    )
    max_requests: int = Field(
        default=64, ge=1, description="Requests at once; one more is refused before it is read."
    )
    max_requests_per_tenant: int = Field(
        default=32,
        ge=1,
        description="Requests at once of one tenant that the edge has named; one more is refused.",
    )
    max_body_bytes: int = Field(
        # Base64 in JSON is a third longer than what it stands for.
        default=_PICTURES * MAX_PICTURE_BYTES * 4 // 3 + _FIELDS_BYTES,
        ge=1,
        description="The body of a request that brings pictures or tensors.",
    )
    max_small_body_bytes: int = Field(
        default=64 * 1024, ge=1, description="The body of every other request."
    )
    max_bodies_bytes: int = Field(
        default=1024 * _MIB,
        ge=1,
        description="Bytes received of the bodies of all open requests together.",
    )
    max_bodies_bytes_per_caller: int = Field(
        default=512 * _MIB,
        ge=1,
        description="The same for one caller: a tenant, or an address where no tenant is named.",
    )
    max_uploads_per_caller: int = Field(
        default=32, ge=1, description="Bodies of one caller that are on their way at once."
    )
    body_timeout_seconds: float = Field(
        default=300.0, gt=0, description="Longest time that a body may take to arrive."
    )
    body_grace_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Time before the least rate counts; a body that pauses so long at its start "
        "ends with 408.",
    )
    body_min_bytes_per_second: int = Field(
        default=16 * 1024, ge=1, description="Least mean rate of a body behind the grace time."
    )
    header_timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        description="A connection whose request line and headers take longer is closed.",
    )
    idle_timeout_seconds: int = Field(
        default=75, ge=1, description="A connection without a request is closed after so long."
    )
    max_connections: int = Field(
        default=1024, ge=1, description="Open connections; one more is closed at once."
    )
    max_json_values: int = Field(
        default=10_000,
        ge=1,
        description="Brackets, colons and commas of a JSON body, a bound of its values; more is "
        "refused before it is parsed.",
    )
    max_form_parts: int = Field(
        default=96, ge=1, description="Files and fields of a form together."
    )
    keepalive_seconds: float = Field(
        default=15.0,
        gt=0,
        description="A comment goes into an event stream that is silent so long.",
    )
