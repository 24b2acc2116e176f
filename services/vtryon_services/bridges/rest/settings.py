"""Settings of the REST bridge."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vtryon.catalog import CATALOG, REST
from vtryon.types import MAX_GARMENTS, MAX_PICTURE_BYTES
from vtryon_services.bridges.targets import TargetSettings

_PICTURES = 1 + MAX_GARMENTS
_FIELDS_BYTES = 4 * 1024 * 1024
_MIB = 1024 * 1024


class RestSettings(TargetSettings):
    """Read from VTRYON_REST_… variables."""

    service: ClassVar[str] = REST

    listen: str = Field(default=CATALOG[REST].address, description="host:port to serve HTTP on.")
    allowed_hosts: str = Field(
        default="localhost",
        description="Accepted host names of the Host header, separated by commas; other names "
        "are rejected. IP addresses and names without a dot are always accepted. "
        "`*` accepts every name and every origin: for a server behind an edge that "
        "checks them.",
    )
    cors_origins: str = Field(
        default="http://localhost:*,http://127.0.0.1:*",
        description="Origins whose pages may call this server, separated by commas; `:*` "
        "matches any port. Forms sent by pages of other origins are rejected.",
    )
    max_requests: int = Field(
        default=64,
        ge=1,
        description="Maximum concurrent requests; further ones are rejected before their body "
        "is read.",
    )
    max_requests_per_tenant: int = Field(
        default=32,
        ge=1,
        description="Maximum concurrent requests of one tenant, as the edge names it; further "
        "ones are rejected.",
    )
    max_body_bytes: int = Field(
        # Base64 in JSON is a third longer than what it stands for.
        default=_PICTURES * MAX_PICTURE_BYTES * 4 // 3 + _FIELDS_BYTES,
        ge=1,
        description="Maximum body size in bytes of requests with pictures or tensors.",
    )
    max_small_body_bytes: int = Field(
        default=64 * 1024, ge=1, description="Maximum body size in bytes of all other requests."
    )
    max_bodies_bytes: int = Field(
        default=1024 * _MIB,
        ge=1,
        description="Maximum total bytes held for the bodies of all open requests; further "
        "requests are rejected as QUEUE_FULL.",
    )
    max_bodies_bytes_per_caller: int = Field(
        default=512 * _MIB,
        ge=1,
        description="The same limit for one client: a tenant, or an IP address where no tenant "
        "is named.",
    )
    max_uploads_per_caller: int = Field(
        default=32, ge=1, description="Maximum concurrent uploads of one client."
    )
    body_timeout_seconds: float = Field(
        default=300.0,
        gt=0,
        description="Maximum seconds for the whole body of a request to arrive.",
    )
    body_grace_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Seconds before body_min_bytes_per_second applies; a body that pauses for "
        "so long at its start is rejected with 408.",
    )
    body_min_bytes_per_second: int = Field(
        default=16 * 1024,
        ge=1,
        description="Minimum mean upload rate in bytes per second after body_grace_seconds; a "
        "slower upload is rejected with 408.",
    )
    body_max_bytes_per_second: int = Field(
        default=32 * _MIB,
        ge=1,
        description="Maximum upload rate in bytes per second of all bodies of one client, after "
        "a burst of one second's worth; more waits in the connections.",
    )
    header_timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Maximum seconds for the request line and headers to arrive; then the "
        "connection is closed.",
    )
    idle_timeout_seconds: int = Field(
        default=75,
        ge=1,
        description="Seconds after which a connection without a request is closed.",
    )
    max_connections: int = Field(
        default=1024, ge=1, description="Maximum open connections; further ones are closed at once."
    )
    max_json_values: int = Field(
        default=10_000,
        ge=1,
        description="Maximum brackets, colons and commas of a JSON body, which bounds its "
        "values; checked before parsing.",
    )
    max_form_parts: int = Field(
        default=96, ge=1, description="Maximum files and fields of a form together."
    )
    keepalive_seconds: float = Field(
        default=15.0,
        gt=0,
        description="Seconds of silence after which an event stream gets a comment, so that "
        "proxies keep it open.",
    )
