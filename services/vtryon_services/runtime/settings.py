"""Settings from the environment, one class per service.

A field `device` of the service `sampling` is read from VTRYON_SAMPLING_DEVICE, or else from
VTRYON_DEVICE, which counts for every service that has it. A name that no service knows and a value
that does not hold stop the start.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from vtryon.catalog import CATALOG
from vtryon.errors import SettingsError
from vtryon_services.runtime.addresses import Addresses
from vtryon_services.runtime.lora_files import LoraFiles
from vtryon_services.runtime.sources import OptionalSource

PREFIX = "VTRYON_"
# Read by the command-line client, and no service's business.
_CLIENT_NAMES = {"TOKEN"}


class ProcessSettings(BaseSettings):
    """Settings of every serving process, whatever its protocol."""

    service: ClassVar[str]
    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=False)

    listen: str = Field(
        default="127.0.0.1:50050", description="Address to serve on: host:port or unix:/path."
    )
    profile: Literal["development", "production"] = Field(
        default="development",
        description="`production` turns gRPC reflection off and logs JSON; `development` logs "
        "text.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log level that is written."
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="host:port of the OTLP gRPC receiver for traces and metrics. Unset: none "
        "are exported, unless OpenTelemetry's own variables name one.",
    )
    prometheus_listen: str | None = Field(
        default=None,
        description="host:port to serve Prometheus metrics on, without authentication: keep it "
        "private. Unset: not served.",
    )
    drain_delay_seconds: float = Field(
        default=0.0,
        ge=0,
        description="Seconds between reporting NOT_SERVING and refusing new calls at shutdown, "
        "so that load balancers notice.",
    )
    drain_grace_seconds: float = Field(
        default=30.0,
        ge=0,
        description="Grace period in seconds for in-flight calls during shutdown; calls still "
        "open then are cancelled.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments first, then the service's own variables, then the shared ones."""
        own = EnvSettingsSource(settings_cls, env_prefix=variable_prefix(cls.service))
        shared = EnvSettingsSource(settings_cls, env_prefix=PREFIX)
        return init_settings, own, shared

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read the environment; arguments take precedence.

        Raises:
            SettingsError: names each variable that is unknown or invalid.
        """
        return cls.load_from(given)

    @classmethod
    def load_from(
        cls, given: Mapping[str, Any], beside: Sequence[type[ProcessSettings]] = ()
    ) -> Self:
        """Read the environment; of the arguments for several services, use this one's.

        Args:
            given: takes precedence over the environment. Settings of `beside` are ignored here.
            beside: settings of the other services of this process, whose short names count too.

        Raises:
            SettingsError: names each variable that is unknown or invalid.
        """
        # `cls` may be among those beside.
        started: list[type[ProcessSettings]] = list(dict.fromkeys((cls, *beside)))
        problems = list(unknown_variables(started))
        if foreign := [name for name in given if name not in cls.model_fields]:
            known = {name for one in _all_settings() for name in one.model_fields}
            problems += [f"{name} is no setting" for name in foreign if name not in known]
        own = {name: value for name, value in given.items() if name in cls.model_fields}
        try:
            settings = cls(**own)
        except ValidationError as error:
            problems += [cls._describe(dict(problem), own) for problem in error.errors()]
        if problems:
            raise SettingsError("; ".join(problems))
        return settings

    @classmethod
    def _describe(cls, problem: dict[str, Any], given: Mapping[str, Any]) -> str:
        """Name the source of an invalid value: the variable that was read, or the argument."""
        field = str(problem["loc"][0]) if problem["loc"] else "settings"
        own, short = variable_prefix(cls.service) + field.upper(), PREFIX + field.upper()
        read = next((name for name in (own, short) if name in _environment()), own)
        said = problem["msg"].removeprefix("Value error, ")
        return f"{field if field in given else read} is {problem['input']!r}: {said}"


class ServiceSettings(ProcessSettings):
    """Additional settings of every gRPC service."""

    tls_certificate_path: Path | None = Field(
        default=None,
        description="PEM certificate chain of this server; enables TLS, together with "
        "tls_key_path.",
    )
    tls_key_path: Path | None = Field(
        default=None, description="PEM private key of tls_certificate_path."
    )
    tls_client_ca_path: Path | None = Field(
        default=None,
        description="PEM certificates of the authorities that sign client certificates; enables "
        "mutual TLS.",
    )
    default_timeout_seconds: float = Field(
        default=120.0,
        gt=0,
        le=3600,
        description="Deadline in seconds of calls whose client sets none.",
    )
    write_timeout_seconds: float = Field(
        default=30.0,
        gt=0,
        description="Seconds that a client may leave a sent message unread; then its call is "
        "cancelled.",
    )
    first_message_timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Seconds to wait for the first message of a call; then it fails as "
        "STREAM_INCOMPLETE.",
    )
    chunk_timeout_seconds: float = Field(
        default=30.0,
        gt=0,
        description="Seconds to wait for the next chunk of a call; then it fails as "
        "STREAM_INCOMPLETE.",
    )
    max_streams: int = Field(
        default=1000,
        ge=1,
        description="Maximum concurrent calls on one connection. Further calls queue in the "
        "client, where tenants do not share fairly.",
    )
    max_calls: int = Field(
        default=1000,
        ge=1,
        description="Maximum concurrent calls of this process; further ones are rejected as "
        "QUEUE_FULL.",
    )
    max_calls_per_tenant: int = Field(
        default=400,
        ge=1,
        description="Maximum concurrent calls of one tenant; further ones are rejected as "
        "QUEUE_FULL.",
    )
    max_silent_calls: int = Field(
        default=16,
        ge=1,
        description="Maximum calls of one tenant that have sent no message for over a second; "
        "one more cancels the oldest of them as QUEUE_FULL.",
    )
    max_health_watches: int = Field(
        default=64,
        ge=1,
        description="Maximum concurrent health Watch streams; further ones are rejected as "
        "RESOURCE_EXHAUSTED.",
    )
    max_payload_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=1,
        description="Maximum total payload bytes of one call; a call that declares more is "
        "rejected as PAYLOAD_TOO_LARGE.",
    )
    max_declared_bytes: int = Field(
        default=4 * 1024**3,
        ge=1,
        description="Maximum payload bytes declared by all open calls of this process; a call "
        "that exceeds it is rejected as QUEUE_FULL.",
    )
    max_declared_bytes_per_tenant: int = Field(
        default=1024**3,
        ge=1,
        description="Maximum payload bytes declared by all open calls of one tenant; a call "
        "that exceeds it is rejected as QUEUE_FULL.",
    )
    handshake_timeout_seconds: float = Field(
        default=3.0,
        gt=0,
        description="Seconds for the TLS and HTTP/2 handshake of a new connection; then it is "
        "closed.",
    )
    max_connections: int = Field(
        default=0,
        ge=0,
        description="Maximum open connections; further ones are closed at once. 0: three "
        "quarters of this process's file descriptor limit, at most 10000.",
    )
    max_connection_idle_seconds: float = Field(
        default=300.0,
        gt=0,
        description="Seconds after which a connection without a call is closed.",
    )
    max_connection_age_seconds: float = Field(
        default=600.0,
        gt=0,
        description="Seconds after which a connection accepts no new calls; clients open "
        "another one, which rebalances load.",
    )
    max_connection_age_grace_seconds: float = Field(
        default=3600.0,
        gt=0,
        description="Grace period in seconds for in-flight calls on a connection of maximum age.",
    )


class StageSettings(ServiceSettings):
    """Additional settings of every stage."""

    backend: Literal["torch", "triton", "scripted"] = Field(
        default="torch",
        description="Where inference runs: `torch` in this process, `triton` on a Triton "
        "server, `scripted` nowhere: it sleeps for set times and returns test data.",
    )
    triton_url: Addresses = Field(
        default="127.0.0.1:8001",
        description="host:port of the Triton server's gRPC endpoint for the triton backend; "
        "several are separated by commas and balanced.",
    )
    triton_shared_memory_bytes: int = Field(
        default=256 * 1024,
        ge=0,
        description="Minimum input size in bytes that is sent to a Triton server on the same "
        "machine through shared memory. 0: never.",
    )
    checkpoint: OptionalSource = Field(
        default=None,
        description="Checkpoint: a folder in diffusers layout, `hf://org/name[@revision]` of a "
        "model hub, or `comfyui:FOLDER`. Unset: the small checkpoint in the package.",
    )
    device: str = Field(default="cpu", description='torch device: "cpu", "cuda" or "cuda:1".')
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="Element type of the weights and of most arithmetic."
    )
    keep_fp8: bool = Field(
        default=True,
        description="Keep linear layers that are stored in fp8 so in memory, and dequantise each "
        "one as it is computed. If false, they are dequantised once, when loaded: twice the memory "
        "or more, faster steps.",
    )
    threads: int = Field(default=0, ge=0, description="torch CPU threads. 0: torch's own default.")
    compiled: bool = Field(
        default=False,
        description="Compile the sampler's transformer blocks: slower start, faster steps.",
    )
    max_concurrency: int = Field(
        default=16,
        ge=1,
        description="Maximum requests computed concurrently; further ones queue, up to "
        "max_waiting.",
    )
    max_waiting: int = Field(
        default=64,
        ge=0,
        description="Maximum queued requests; further ones are rejected as QUEUE_FULL.",
    )
    scripted_seconds: float = Field(
        default=0.0,
        ge=0,
        description="Seconds that the scripted backend sleeps per request, and per step when "
        "sampling.",
    )


class SamplerSettings(StageSettings):
    """Additional settings of the sampler's model."""

    loras: LoraFiles = Field(
        default={},
        description="LoRA files that requests can choose: PATH, named after the file, or "
        "NAME=PATH; several are separated by commas. They are loaded at start, beside the weights.",
    )


class EncoderSettings(StageSettings):
    """Additional settings of the encoders."""

    max_pictures: int = Field(
        default=4,
        ge=0,
        description="Maximum pictures of one request; a request with more is rejected.",
    )
    cache_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=0,
        description="Size in bytes of the result cache for equal inputs; the least recently "
        "used results are evicted. 0: no cache.",
    )
    cache_per_tenant: bool = Field(
        default=True,
        description="Isolate cached results per tenant. If false, tenants share them; "
        "`accepted.cached` still reports a tenant's own requests only.",
    )


def unknown_variables(started: Sequence[type[ProcessSettings]]) -> Iterator[str]:
    """Describe each variable that none of the started services reads.

    Variables of services that are not started are left alone, but for short names, which speak of
    all services of a process.
    """
    for variable in sorted(_environment()):
        owner = _owner_of(variable)
        if owner is None:
            if not _is_read(variable.removeprefix(PREFIX).lower(), started):
                yield _describe_unknown(variable, variable.removeprefix(PREFIX).lower(), started)
            continue
        name = variable.removeprefix(variable_prefix(owner)).lower()
        for one in started:
            if one.service == owner and name not in one.model_fields:
                yield _describe_unknown(variable, name, [one])


def _environment() -> set[str]:
    return {name for name in os.environ if name.startswith(PREFIX)}


def _owner_of(variable: str) -> str | None:
    """Tell which service's prefix a variable has, if any."""
    return next((one for one in CATALOG if variable.startswith(variable_prefix(one))), None)


def _is_read(name: str, started: Sequence[type[ProcessSettings]]) -> bool:
    shared: list[type[ProcessSettings]] = [*started, StageSettings]
    return name.upper() in _CLIENT_NAMES or any(name in one.model_fields for one in shared)


def _describe_unknown(variable: str, name: str, started: Sequence[type[ProcessSettings]]) -> str:
    if owners := [one for one in _all_settings() if name in one.model_fields]:
        names = ", ".join(sorted({str(one.service) for one in owners}))
        return f"{variable} is no setting of what is started; {name} is one of {names}"
    known = sorted({field for one in started for field in one.model_fields})
    services = ", ".join(str(one.service) for one in started)
    return f"{variable} is no setting. Settings of {services}: {', '.join(known)}"


def _all_settings() -> Iterator[type[ProcessSettings]]:
    """Give the settings of all services, also of those that are not served here."""
    for entry in CATALOG.values():
        yield pkgutil.resolve_name(entry.settings)


def variable_prefix(service: str) -> str:
    """Name a service's variables: VTRYON_LATENT_ENCODER_."""
    return f"{PREFIX}{service.upper().replace('-', '_')}_"
