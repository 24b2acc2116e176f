"""Settings from the environment, one class per service.

A field `device` of the service `sampling` is read from VTRYON_SAMPLING_DEVICE, or else from
VTRYON_DEVICE, which counts for every service that has it. A name that no service knows and a value
that does not hold stop the start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from vtryon.errors import SettingsError
from vtryon.types import Stage

PREFIX = "VTRYON_"
# Doors and jobs are services as well, but no stages.
JOBS = "jobs"
REST = "rest"
KAFKA = "kafka"
SERVICES = (*Stage, JOBS, REST, KAFKA)
# Read by the command-line client, and no service's business.
_CLIENT_NAMES = {"TOKEN"}


class ProcessSettings(BaseSettings):
    """What every process that serves can be told, whatever it speaks."""

    service: ClassVar[str]
    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=False)

    listen: str = Field(
        default="127.0.0.1:50050", description="Address to serve on, host:port or unix:/path."
    )
    profile: Literal["development", "production"] = Field(
        default="development",
        description="production turns reflection off and logs JSON.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: str | None = Field(
        default=None,
        description="Where traces and metrics go, host:port of an OTLP gRPC receiver.",
    )
    prometheus_listen: str | None = Field(
        default=None,
        description="Where Prometheus may ask for metrics, host:port; not for the public.",
    )
    drain_delay_seconds: float = Field(
        default=0.0, ge=0, description="From NOT_SERVING to closing, for routing to notice."
    )
    drain_grace_seconds: float = Field(
        default=30.0, ge=0, description="What calls still open get to finish."
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
        """Read the environment; `given` comes first.

        Raises:
            SettingsError: names each variable that is unknown or does not hold.
        """
        problems = [f"{name} is no setting" for name in cls._unknown_variables()]
        try:
            settings = cls(**given)
        except ValidationError as error:
            problems += [cls._describe(dict(problem)) for problem in error.errors()]
        if problems:
            known = ", ".join(sorted(cls.model_fields))
            raise SettingsError(f"{'; '.join(problems)}. Settings of {cls.service}: {known}")
        return settings

    @classmethod
    def load_from(cls, given: Mapping[str, Any]) -> Self:
        """Read the environment; of what is given to several services, take what this one has.

        Raises:
            SettingsError: as `load`.
        """
        return cls.load(
            **{name: value for name, value in given.items() if name in cls.model_fields}
        )

    @classmethod
    def _unknown_variables(cls) -> Iterator[str]:
        own = variable_prefix(cls.service)
        others = [variable_prefix(one) for one in SERVICES if one != cls.service]
        shared = (
            set(StageSettings.model_fields)
            | set(cls.model_fields)
            | {name.lower() for name in _CLIENT_NAMES}
        )
        for variable in sorted(os.environ):
            if variable.startswith(own):
                known = variable.removeprefix(own).lower() in cls.model_fields
            elif variable.startswith(PREFIX) and not variable.startswith(tuple(others)):
                known = variable.removeprefix(PREFIX).lower() in shared
            else:
                continue
            if not known:
                yield variable

    @classmethod
    def _describe(cls, problem: dict[str, Any]) -> str:
        field = str(problem["loc"][0]) if problem["loc"] else "settings"
        name = variable_prefix(cls.service) + field.upper()
        return f"{name} is {problem['input']!r}: {problem['msg']}"


class ServiceSettings(ProcessSettings):
    """What every gRPC service can be told besides."""

    tls_certificate_path: Path | None = Field(default=None, description="PEM; turns TLS on.")
    tls_key_path: Path | None = Field(default=None, description="PEM of the certificate's key.")
    tls_client_ca_path: Path | None = Field(
        default=None, description="PEM of who may sign clients' certificates; turns mutual TLS on."
    )
    default_timeout_seconds: float = Field(
        default=120.0, gt=0, le=3600, description="For callers that set no deadline."
    )
    write_timeout_seconds: float = Field(
        default=30.0, gt=0, description="A caller that reads nothing for so long is cut off."
    )
    max_streams: int = Field(default=100, ge=1, description="Calls open at once.")
    max_payload_bytes: int = Field(
        default=256 * 1024 * 1024, ge=1, description="All payloads of one call together."
    )


class StageSettings(ServiceSettings):
    """What every stage can be told besides."""

    backend: Literal["torch", "triton", "scripted"] = Field(
        default="torch",
        description="Where the arithmetic happens; scripted computes nothing and takes set times.",
    )
    triton_url: str = Field(
        default="127.0.0.1:8001",
        description="Of the triton backend: host:port, or several between commas.",
    )
    triton_shared_memory_bytes: int = Field(
        default=256 * 1024,
        ge=0,
        description="Inputs of so many bytes go to a Triton server on this machine through shared "
        "memory; 0: never.",
    )
    checkpoint: Path | None = Field(
        default=None, description="Folder in diffusers layout; unset: the one that ships."
    )
    device: str = Field(default="cpu", description='A torch device: "cpu", "cuda", "cuda:1".')
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="Element type of the weights."
    )
    threads: int = Field(default=0, ge=0, description="torch threads; 0 leaves it to torch.")
    compiled: bool = Field(
        default=False,
        description="Compile the sampler's blocks: a slower start, quicker steps.",
    )
    places: int = Field(default=16, ge=1, description="Requests computed at once.")
    max_waiting: int = Field(default=64, ge=0, description="Requests waiting before refusal.")
    scripted_seconds: float = Field(
        default=0.0, ge=0, description="What the scripted backend takes, per step when sampling."
    )


class EncoderSettings(StageSettings):
    """What the encoders can be told besides."""

    max_pictures: int = Field(default=4, ge=0, description="Pictures of one request.")
    cache_bytes: int = Field(
        default=256 * 1024 * 1024, ge=0, description="Results kept for equal input; 0 for none."
    )
    cache_per_tenant: bool = Field(
        default=False, description="Whether a tenant meets its own results alone."
    )


def variable_prefix(service: str) -> str:
    """Name a service's variables: VTRYON_LATENT_ENCODER_."""
    return f"{PREFIX}{service.upper().replace('-', '_')}_"
