"""Settings of the Kafka bridge."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr, model_validator

from vtryon.errors import SettingsError
from vtryon.types import Stage
from vtryon_services.bridges.targets import TargetSettings
from vtryon_services.runtime.settings import JOBS, KAFKA, ServiceSettings

_DAY = 86_400.0
# What a message's headers and its other fields may take.
HEADROOM_BYTES = 64 * 1024
STAGES = tuple(stage for stage in Stage if stage is not Stage.PIPELINE)
WORKS = (JOBS, *STAGES)


class KafkaSettings(TargetSettings, ServiceSettings):
    """Read from VTRYON_KAFKA_… variables."""

    service: ClassVar[str] = KAFKA

    listen: str = Field(default="127.0.0.1:50056", description="Of its health service, host:port.")
    bootstrap_servers: str = Field(
        default="127.0.0.1:9092", description="host:port, or several between commas."
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    tls_ca_path: str | None = Field(
        default=None, description="PEM of who signs brokers' certificates; else the system's."
    )
    registry_url: str = Field(
        default="http://127.0.0.1:8081", description="Of a schema registry with Confluent's API."
    )
    registry_user: str | None = None
    registry_password: SecretStr | None = None
    serves: str = Field(
        default="jobs",
        description="Between commas: jobs, and the stages whose topics are worked on; or all.",
    )
    topology: Literal["hybrid", "kafka"] = Field(
        default="hybrid",
        description="Of whole jobs: through the ledger of jobs and the pipeline, or from stage to "
        "stage by topics alone.",
    )
    prefix: str = Field(default="vtryon", pattern=r"^[a-z0-9-]+$", description="Of all topics.")
    claims_url: str = Field(
        default="vtryon-claims",
        description="Where bytes are kept that are too many for a message: a folder, or "
        "s3://bucket/prefix.",
    )
    claim_bytes: int = Field(
        default=512 * 1024, ge=0, description="A message's bytes beyond which they are kept there."
    )
    claim_seconds: float = Field(
        default=7 * _DAY, gt=0, description="How long; of a bucket its own rules say so."
    )
    create_topics: bool = Field(
        default=False, description="Make topics that are missing when it starts; for development."
    )
    partitions: int = Field(default=3, ge=1, description="Of each topic of requests.")
    replication: int = Field(default=1, ge=1, description="Of each topic.")
    retention_seconds: float = Field(default=7 * _DAY, gt=0, description="Of each topic.")
    max_message_bytes: int = Field(
        default=1024 * 1024, ge=640 * 1024, description="Of each topic, and of what is sent."
    )
    idempotent: bool | None = Field(
        default=None,
        description="Whether the producer is idempotent: the broker then drops what a repeated "
        "request brings twice. Unset: where the broker has it, and the log says where not. true: "
        "the start fails where the broker has not. false: never.",
    )
    request_timeout_seconds: float = Field(default=40.0, gt=5, description="Of a broker's answer.")
    session_seconds: float = Field(
        default=10.0,
        ge=1,
        le=300,
        description="A member silent for so long has left its group.",
    )
    concurrency: int = Field(default=16, ge=1, description="Messages of one topic worked on.")
    max_in_flight: int = Field(
        default=16, ge=1, description="Messages of one partition held, waiting ones included."
    )
    retry_seconds: tuple[float, ...] = Field(
        default=(5.0, 60.0), description="Before each further attempt, each with its own topic."
    )
    work_timeout_seconds: float = Field(
        default=600.0, gt=0, le=3600, description="For messages that name no deadline."
    )

    @model_validator(mode="after")
    def _knows_what_it_serves(self) -> KafkaSettings:
        if unknown := set(self._named()) - set(WORKS):
            known = ", ".join(WORKS)
            raise ValueError(f"serves knows no {', '.join(unknown)}; there are {known}, all")
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
        """Give what every client of the broker is told.

        Raises:
            SettingsError: TLS or SASL is set up by half.
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
