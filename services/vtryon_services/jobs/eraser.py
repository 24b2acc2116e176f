"""Deletes the artifacts of erased jobs, and retries until all are deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from opentelemetry import metrics

from vtryon_services.jobs.seals import Seals
from vtryon_services.jobs.store import JobStore
from vtryon_services.storage.artifacts import Artifacts
from vtryon_services.storage.outage import Outage, StorageError

_log = structlog.get_logger("vtryon.jobs")
_SWEEP_SECONDS = 5.0
_FAILURES_IN_A_ROW = 10
_meter = metrics.get_meter("vtryon")
_open = _meter.create_gauge("vtryon.jobs.open", description="Jobs that have not, by state.")
_unpublished = _meter.create_gauge(
    "vtryon.jobs.unpublished", description="Changes of state that wait for a bridge."
)
_erased = _meter.create_counter("vtryon.jobs.erased", description="Jobs erased.")
_not_erased = _meter.create_counter(
    "vtryon.jobs.erasures_failed", description="Attempts to erase a job that the storage refused."
)


class Eraser:
    """Erases the jobs that the store has marked, and folders that no job names."""

    def __init__(self, store: JobStore, artifacts: Artifacts, seals: Seals) -> None:
        self._store = store
        self._erasures = store.erasures
        self._artifacts = artifacts
        self._seals = seals

    async def erase(self, job_id: str) -> bool:
        """Erase a marked job that has ended; return False if the storage fails or there is none.

        Raises:
            StorageError: the database failed.
        """
        folders = await self._erasures.folders_of(job_id)
        return folders is not None and await self._attempt(job_id, folders)

    async def _attempt(self, job_id: str, folders: Sequence[str]) -> bool:
        try:
            await self._seals.erase(job_id)
            await self._artifacts.erase_folders(folders)
        except StorageError as error:
            _not_erased.add(1)
            _log.warning("a job could not be erased yet", job=job_id, cause=error.message)
            return False
        await self._erasures.confirm(job_id)
        _erased.add(1)
        return True

    async def run(self) -> None:
        """Erase jobs that are due and count pending ones, until cancelled."""
        outage = Outage(_log, "jobs could not be looked through")
        while True:
            pause = _SWEEP_SECONDS
            try:
                await self.sweep()
                await self._count()
                outage.over()
            except Exception as error:  # the database may come back
                pause = max(pause, outage.failed(error))
            await asyncio.sleep(pause)

    async def sweep(self) -> None:
        """Erase everything that is due.

        Raises:
            StorageError: the database failed.
        """
        await self._erasures.expire()
        behind, failures = "", 0
        while failures < _FAILURES_IN_A_ROW and (due := await self._erasures.due(behind)):
            for job_id, folders in due:
                behind = job_id
                failures = 0 if await self._attempt(job_id, folders) else failures + 1
                if failures == _FAILURES_IN_A_ROW:  # the storage is away
                    break
        for folder in await self._erasures.leftover():
            await self.erase_leftover(folder)

    async def erase_leftover(self, folder: str) -> None:
        """Delete a folder that no job names; later where the storage refuses.

        Raises:
            StorageError: the database failed.
        """
        try:
            await self._artifacts.erase_folders([folder])
        except StorageError as error:
            _log.warning("a folder could not be deleted yet", folder=folder, cause=error.message)
            await self._erasures.postpone(folder, _SWEEP_SECONDS)
            return
        await self._erasures.forget(folder)

    async def _count(self) -> None:
        for state, count in (await self._store.counts()).items():
            _open.set(count, {"state": state.value})
        _unpublished.set(await self._store.outbox.count())
