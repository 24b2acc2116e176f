"""Settings of the pipeline."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vtryon.types import MAX_GARMENTS, Stage
from vtryon_services.runtime.addresses import Addresses, Target
from vtryon_services.runtime.settings import ServiceSettings


class PipelineSettings(ServiceSettings):
    """Read from VTRYON_PIPELINE_… variables."""

    service: ClassVar[Stage] = Stage.PIPELINE

    listen: str = "127.0.0.1:50050"
    topology: Literal["direct", "ensemble"] = Field(
        default="direct",
        description="Over four stages, or as one request of a Triton server's ensemble.",
    )
    triton_url: Addresses = Field(
        default="127.0.0.1:8001",
        description="Of the ensemble: host:port, or several between commas.",
    )
    triton_shared_memory_bytes: int = Field(
        default=256 * 1024, ge=0, description="As that of the stages."
    )
    latent_encoder_target: Target = Field(default="127.0.0.1:50051", description="host:port.")
    text_encoder_target: Target = Field(default="127.0.0.1:50052", description="host:port.")
    sampling_target: Target = Field(default="127.0.0.1:50053", description="host:port.")
    decoding_target: Target = Field(default="127.0.0.1:50054", description="host:port.")
    stage_attempts: int = Field(
        default=4, ge=1, le=16, description="Attempts at a stage that goes away, elsewhere."
    )
    resume_every: int = Field(
        default=4, ge=0, le=200, description="Keep the latents of every n-th step; 0 for never."
    )
    max_requests: int = Field(
        default=32,
        ge=1,
        description="Try-ons at once; one more is refused as QUEUE_FULL, or waits if its "
        "tenant has less than an equal share of them.",
    )
    max_garments: int = Field(
        default=MAX_GARMENTS, ge=0, le=8, description="Garments of one try-on."
    )
