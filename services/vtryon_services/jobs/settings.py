"""Settings of jobs."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vtryon_services.runtime.addresses import Target
from vtryon_services.runtime.settings import JOBS, ServiceSettings

_DAY = 86_400.0


class JobsSettings(ServiceSettings):
    """Read from VTRYON_JOBS_… variables."""

    service: ClassVar[str] = JOBS

    listen: str = "127.0.0.1:50055"
    pipeline_target: Target = Field(default="127.0.0.1:50050", description="host:port.")
    database_url: str = Field(
        default="sqlite+aiosqlite:///vtryon-jobs.sqlite",
        description="SQLAlchemy's; in production postgresql+asyncpg://…",
    )
    artifacts_url: str = Field(
        default="vtryon-jobs",
        description="Where pictures are kept: a folder, or s3://bucket/prefix.",
    )
    runners: int = Field(
        default=8, ge=0, description="Jobs run at once by this process; 0 to serve alone."
    )
    lease_seconds: float = Field(
        default=15.0, gt=0, description="A runner that says nothing for so long has lost its job."
    )
    poll_seconds: float = Field(
        default=0.25, gt=0, description="How often other processes' doings are looked for."
    )
    max_attempts: int = Field(default=4, ge=1, le=100, description="Of one job.")
    retry_seconds: float = Field(
        default=2.0,
        gt=0,
        description="Before the second attempt; four times as long before each next.",
    )
    resume_every: int = Field(
        default=4, ge=0, le=200, description="Keep the latents of every n-th step; 0 for never."
    )
    job_timeout_seconds: float = Field(
        default=_DAY, gt=0, le=30 * _DAY, description="For jobs that name no deadline."
    )
    keep_seconds: float = Field(
        default=7 * _DAY, gt=0, description="After its end, until a job's pictures are erased."
    )
    outbox: bool = Field(
        default=False,
        description="Keep every change of state until a bridge has published it.",
    )
    max_waiting: int = Field(default=10_000, ge=1, description="Jobs queued before refusal.")
