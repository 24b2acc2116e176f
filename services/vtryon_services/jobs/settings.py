"""Settings of jobs."""

from __future__ import annotations

from pathlib import Path
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
    data_folder: Path = Field(
        default=Path(),
        description="Folder of what relative paths in database_url and artifacts_url name; made "
        "where it is missing, readable by its owner alone. By default the current folder. Its "
        "absolute path is logged at the start.",
    )
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
    leftover_seconds: float = Field(
        default=3600.0,
        ge=1,
        description="Pictures of a job that was never made, since the process or its caller ended "
        "first, are deleted after so many seconds; longer than an upload to the artifact store "
        "takes.",
    )
    outbox: bool = Field(
        default=False,
        description="Keep every change of state until a bridge has published it.",
    )
    max_waiting: int = Field(default=10_000, ge=1, description="Jobs queued before refusal.")
    page_bytes: int = Field(
        default=1024 * 1024,
        ge=64 * 1024,
        le=3 * 1024 * 1024,
        description="Bytes after which a page of ListJobs ends, with a token for the next, even if "
        "fewer jobs are on it than were asked for.",
    )
    max_watches_per_tenant: int = Field(
        default=64,
        ge=1,
        description="WatchJob calls that one tenant may have open in this process; more are "
        "refused as QUEUE_FULL with a time to come back.",
    )

    @property
    def folder(self) -> Path:
        """The absolute path of `data_folder`."""
        return self.data_folder.expanduser().absolute()
