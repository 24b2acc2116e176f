"""A mesh without a model, with jobs in a database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from vtryon.types import Stage
from vtryon_services.host import host
from vtryon_services.jobs.settings import JobsSettings


@asynccontextmanager
async def jobs_served(folder: Path, **own: Any) -> AsyncIterator[str]:
    """Serve all stages, scripted, and jobs in a file, or as set; gives the target."""
    given = {
        "backend": "scripted",
        "database_url": f"sqlite:///{folder / 'jobs.sqlite'}",
        "artifacts_url": str(folder / "artifacts"),
        "log_level": "error",
        **own,
    }
    settings = JobsSettings.load_from(given)
    async with host(settings, [*Stage, "jobs"], "127.0.0.1:0", **given) as serving:
        yield serving.address
