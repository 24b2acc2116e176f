"""Settings of the Kafka bridge."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr, model_validator

from vtryon.catalog import CATALOG, JOBS, KAFKA
from vtryon.errors import SettingsError
from vtryon.types import Stage
from vtryon_services.bridges.targets import TargetSettings
from vtryon_services.runtime.settings import ServiceSettings

_DAY = 86_400.0
# What a message's headers and its other fields may take.
HEADROOM_BYTES = 64 * 1024
STAGES = tuple(stage for stage in Stage if stage is not Stage.PIPELINE)
WORKS = (JOBS, *STAGES)


class KafkaSettings(TargetSettings, ServiceSettings):
    """Read from VTRYON_KAFKA_… variables."""

    service: ClassVar[str] = KAFKA

    listen: str = Field(
        default=CATALOG[KAFKA].address,
        description="host:port of the gRPC health service.",
    )
    bootstrap_servers: str = Field(
        default="127.0.0.1:9092",
        description="host:port of a Kafka broker; several are separated by commas.",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="Transport security of the connection to the brokers."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="SASL mechanism, for a security_protocol with SASL."
    )
    sasl_username: str | None = Field(
        default=None, description="SASL user name; required with SASL."
    )
    sasl_password: SecretStr | None = Field(
        default=None, description="SASL password; required with SASL."
    )
    tls_ca_path: str | None = Field(
        default=None,
        description="PEM certificates of the authorities that sign broker certificates. Unset: "
        "the system's.",
    )
    registry_url: str = Field(
        default="http://127.0.0.1:8081",
        description="URL of a schema registry with Confluent's API.",
    )
    registry_user: str | None = Field(
        default=None, description="User name for the schema registry's basic authentication."
    )
    registry_password: SecretStr | None = Field(
        default=None, description="Password for the schema registry's basic authentication."
    )
    serves: str = Field(
        default="jobs",
        description="Topics to consume, separated by commas: `jobs` and names of stages, or `all`.",
    )
    topology: Literal["hybrid", "kafka"] = Field(
        default="hybrid",
        description="How whole jobs run: `hybrid` through the job store and the pipeline, "
        "`kafka` from stage to stage by topics alone.",
    )
    prefix: str = Field(
        default="vtryon",
        pattern=r"^[a-z0-9-]+$",
        description="Prefix of all topic and group names.",
    )
    claims_url: str = Field(
        default="vtryon-claims",
        description="Claim-check storage of payloads too large for a message: a folder, or "
        "s3://bucket/prefix.",
    )
    claim_bytes: int = Field(
        default=512 * 1024,
        ge=0,
        description="Payload bytes of a message above which payloads go to claims_url.",
    )
    claim_seconds: float = Field(
        default=7 * _DAY,
        gt=0,
        description="Retention in seconds of claim-check objects. For S3, configure bucket "
        "lifecycle rules instead.",
    )
    create_topics: bool = Field(
        default=False, description="Create missing topics at the start; for development."
    )
    partitions: int = Field(
        default=3, ge=1, description="Partitions of each request topic that is created."
    )
    replication: int = Field(
        default=1, ge=1, description="Replication factor of each topic that is created."
    )
    retention_seconds: float = Field(
        default=7 * _DAY, gt=0, description="Retention in seconds of each topic that is created."
    )
    max_message_bytes: int = Field(
        default=1024 * 1024,
        ge=640 * 1024,
        description="Maximum bytes of a message, of each topic that is created and of "
        "everything that is produced.",
    )
    idempotent: bool | None = Field(
        default=None,
        description="Use the idempotent producer, so that the broker drops duplicates of a "
        "retried send. Unset: if the broker supports it, with a warning otherwise. "
        "true: the start fails without support. false: never.",
    )
    request_timeout_seconds: float = Field(
        default=40.0, gt=5, description="Seconds to wait for a broker's response."
    )
    session_seconds: float = Field(
        default=10.0,
        ge=1,
        le=300,
        description="Session timeout in seconds of the consumer group; a member silent for "
        "longer is removed.",
    )
    concurrency: int = Field(
        default=16, ge=1, description="Maximum messages of one topic processed concurrently."
    )
    max_in_flight: int = Field(
        default=16,
        ge=1,
        description="Maximum messages of one partition held in memory, waiting ones included.",
    )
    retry_seconds: tuple[float, ...] = Field(
        default=(5.0, 60.0),
        description="Seconds before each further attempt; each has a retry topic of its own, "
        "and the dead-letter topic follows.",
    )
    work_timeout_seconds: float = Field(
        default=600.0,
        gt=0,
        le=3600,
        description="Deadline in seconds of messages without a `deadline` header.",
    )

    @model_validator(mode="after")
    def _knows_what_it_serves(self) -> KafkaSettings:
        if unknown := set(self._named()) - set(WORKS):
            known = ", ".join(WORKS)
            raise ValueError(f"serves has unknown {', '.join(unknown)}; there are {known}, all")
        if self.claim_bytes > self.max_message_bytes - HEADROOM_BYTES:
            limit = self.max_message_bytes - HEADROOM_BYTES
            raise ValueError(f"claim_bytes takes at most max_message_bytes - 64 KiB: {limit}")
        return self

    def _named(self) -> list[str]:
        if self.serves == "all":
            return list(WORKS)
        return [name.strip() for name in self.serves.split(",") if name.strip()]

    @property
    def works_on(self) -> list[str]:
        """Jobs, stages, or both."""
        return list(dict.fromkeys(self._named()))

    def connection(self) -> dict[str, Any]:
        """Return the connection parameters of every Kafka client.

        Raises:
            SettingsError: TLS or SASL is incomplete.
        """
        given: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "client_id": "vtryon",
            "security_protocol": self.security_protocol,
            "request_timeout_ms": round(self.request_timeout_seconds * 1000),
        }
        if "SSL" in self.security_protocol:
            from aiokafka.helpers import create_ssl_context

            try:
                given["ssl_context"] = create_ssl_context(cafile=self.tls_ca_path)
            except OSError as error:
                raise SettingsError(f"tls_ca_path can't be read: {error.strerror}") from error
        if "SASL" in self.security_protocol:
            if self.sasl_username is None or self.sasl_password is None:
                raise SettingsError("SASL takes both sasl_username and sasl_password")
            given |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password.get_secret_value(),
            }
        return given
