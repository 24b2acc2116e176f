"""Settings of the pipeline."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vtryon.catalog import CATALOG
from vtryon.types import MAX_GARMENTS, Stage
from vtryon_services.runtime.addresses import Addresses, Target
from vtryon_services.runtime.settings import ServiceSettings


class PipelineSettings(ServiceSettings):
    """Read from VTRYON_PIPELINE_… variables."""

    service: ClassVar[Stage] = Stage.PIPELINE

    listen: str = Field(
        default=CATALOG[Stage.PIPELINE].address,
        description="Address to serve on: host:port or unix:/path.",
    )
    topology: Literal["direct", "ensemble"] = Field(
        default="direct",
        description="`direct` calls the four stages; `ensemble` sends one request to a Triton "
        "server's ensemble model.",
    )
    triton_url: Addresses = Field(
        default="127.0.0.1:8001",
        description="host:port of the Triton server's gRPC endpoint for the ensemble topology; "
        "several are separated by commas and balanced.",
    )
    triton_shared_memory_bytes: int = Field(
        default=256 * 1024,
        ge=0,
        description="Minimum input size in bytes that is sent to a Triton server on the same "
        "machine through shared memory. 0: never.",
    )
    latent_encoder_target: Target = Field(
        default=CATALOG[Stage.LATENT_ENCODER].address,
        description="host:port of the latent encoder.",
    )
    text_encoder_target: Target = Field(
        default=CATALOG[Stage.TEXT_ENCODER].address,
        description="host:port of the text encoder.",
    )
    sampling_target: Target = Field(
        default=CATALOG[Stage.SAMPLING].address,
        description="host:port of the sampler.",
    )
    decoding_target: Target = Field(
        default=CATALOG[Stage.DECODING].address,
        description="host:port of the decoder.",
    )
    stage_connect_seconds: float = Field(
        default=60.0,
        ge=0,
        description="How long in seconds a try-on waits for a stage that was never connected, as "
        "one that still loads; then it fails with STAGE_UNAVAILABLE. A stage that was connected "
        "before is waited for 5 s.",
    )
    stage_attempts: int = Field(
        default=4,
        ge=1,
        le=16,
        description="Maximum attempts at a stage, each on another replica if there is one.",
    )
    resume_every: int = Field(
        default=4,
        ge=0,
        le=200,
        description="Keep a resume point of every n-th step in memory for failover. 0: never, "
        "so that a failed sampler starts anew.",
    )
    max_requests: int = Field(
        default=32,
        ge=1,
        description="Maximum concurrent try-ons; further ones are rejected as QUEUE_FULL. Tenants "
        "with less than an equal share get half as many in addition, and queue beyond that.",
    )
    max_garments: int = Field(
        default=MAX_GARMENTS, ge=0, le=8, description="Maximum garment pictures of one try-on."
    )
