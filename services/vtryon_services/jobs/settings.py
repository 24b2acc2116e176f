"""Settings of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from vtryon.catalog import CATALOG, JOBS
from vtryon.types import Stage
from vtryon_services.runtime.addresses import Target
from vtryon_services.runtime.settings import ServiceSettings

_DAY = 86_400.0


class JobsSettings(ServiceSettings):
    """Read from VTRYON_JOBS_… variables."""

    service: ClassVar[str] = JOBS

    listen: str = Field(
        default=CATALOG[JOBS].address,
        description="Address to serve on: host:port or unix:/path.",
    )
    pipeline_target: Target = Field(
        default=CATALOG[Stage.PIPELINE].address,
        description="host:port of the pipeline that runs the jobs.",
    )
    data_folder: Path = Field(
        default=Path(),
        description="Base folder of relative paths in database_url and artifacts_url; created "
        "if missing, readable by its owner only. Default: the current folder. Its "
        "absolute path is logged at the start.",
    )
    database_url: str = Field(
        default="sqlite:///vtryon-jobs.sqlite",
        description="SQLAlchemy URL of the job store: sqlite:///PATH, or "
        "postgresql+asyncpg://... in production.",
    )
    artifacts_url: str = Field(
        default="vtryon-jobs",
        description="Storage of pictures and latents: a folder, or s3://bucket/prefix.",
    )
    runners: int = Field(
        default=8,
        ge=0,
        description="Maximum jobs that this process runs concurrently. 0: serve the API only.",
    )
    runners_per_tenant: int = Field(
        default=0,
        ge=0,
        description="Maximum jobs of one tenant that this process runs concurrently, so that "
        "those of another need not wait for their end. 0: three quarters of `runners`, at least 1.",
    )
    starts_per_second_per_tenant: float = Field(
        default=8.0,
        gt=0,
        description="Maximum jobs per second of one tenant that this process starts while it also "
        "starts jobs of other tenants; further ones wait. A tenant that is alone is not limited.",
    )
    lease_seconds: float = Field(
        default=15.0,
        gt=0,
        description="Lease duration in seconds; a job whose runner does not renew its lease in "
        "time is reassigned.",
    )
    poll_seconds: float = Field(
        default=0.25,
        gt=0,
        description="Interval in seconds at which changes made by other processes are polled.",
    )
    max_attempts: int = Field(
        default=4,
        ge=1,
        le=100,
        description="Maximum attempts at one job; then it fails with its last error.",
    )
    retry_seconds: float = Field(
        default=2.0,
        gt=0,
        description="Seconds before the second attempt; each further pause is four times as long.",
    )
    resume_every: int = Field(
        default=4,
        ge=0,
        le=200,
        description="Store a resume point at every n-th step. 0: never, so that an interrupted "
        "job starts anew.",
    )
    job_timeout_seconds: float = Field(
        default=_DAY,
        gt=0,
        le=30 * _DAY,
        description="Deadline in seconds of jobs that set none, queueing and retries included.",
    )
    keep_seconds: float = Field(
        default=7 * _DAY,
        gt=0,
        description="Retention in seconds of a job's pictures and prompts after its end.",
    )
    leftover_seconds: float = Field(
        default=3600.0,
        ge=1,
        description="Retention in seconds of uploaded pictures whose job was never created "
        "because the client or process ended first. Must exceed the longest upload.",
    )
    outbox: bool = Field(
        default=False,
        description="Keep every state change until a Kafka bridge has published it.",
    )
    max_waiting: int = Field(
        default=10_000,
        ge=1,
        description="Maximum queued jobs; further ones are rejected as QUEUE_FULL, unless "
        "their tenant has less than an equal share.",
    )
    page_bytes: int = Field(
        default=1024 * 1024,
        ge=64 * 1024,
        le=3 * 1024 * 1024,
        description="Maximum bytes of one page of ListJobs; a page that reaches it ends early, "
        "with a token for the next.",
    )
    max_watches_per_tenant: int = Field(
        default=64,
        ge=1,
        description="Maximum concurrent WatchJob calls of one tenant in this process; further "
        "ones are rejected as QUEUE_FULL with a retry delay.",
    )
    watch_updates_per_second: float = Field(
        default=500.0,
        gt=0,
        description="Maximum updates per second that all WatchJob calls of one tenant receive from "
        "this process, shared equally; beyond that updates come later, and none is left out.",
    )

    @property
    def folder(self) -> Path:
        """The absolute path of `data_folder`."""
        return self.data_folder.expanduser().absolute()

    @property
    def most_of_tenant(self) -> int:
        """Maximum jobs of one tenant that this process runs concurrently."""
        return self.runners_per_tenant or max(1, self.runners * 3 // 4)
