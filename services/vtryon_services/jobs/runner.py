"""Leases jobs, and runs them on the pipeline."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence

import structlog
from opentelemetry import context, propagate

from vtryon.client import Client
from vtryon_services.jobs.attempt import Attempt
from vtryon_services.jobs.changes import LeaseLostError
from vtryon_services.jobs.eraser import Eraser
from vtryon_services.jobs.notifier import OUTCOMES, WORK, Notifier
from vtryon_services.jobs.records import Leased
from vtryon_services.jobs.seals import Seals
from vtryon_services.jobs.settings import JobsSettings
from vtryon_services.jobs.starts import StartRate
from vtryon_services.jobs.store import JobStore
from vtryon_services.storage.artifacts import Artifacts
from vtryon_services.storage.outage import Outage

_log = structlog.get_logger("vtryon.jobs")


class Runner:
    """Runs several jobs at once, until it is retired."""

    def __init__(
        self,
        store: JobStore,
        artifacts: Artifacts,
        seals: Seals,
        eraser: Eraser,
        client: Client,
        notifier: Notifier,
        settings: JobsSettings,
    ) -> None:
        self.leases = store.leases
        self.artifacts = artifacts
        self.seals = seals
        self.client = client
        self.notifier = notifier
        self.settings = settings
        self._eraser = eraser
        self._starts = StartRate(settings.starts_per_second_per_tenant)
        self.owner = uuid.uuid4().hex
        self._active: dict[str, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to take jobs."""
        loops = [self._keep_hold(), self._eraser.run()]
        if self.settings.runners:
            loops.append(self._take_jobs())
        self._loops = [asyncio.create_task(loop) for loop in loops]

    def cancel(self, job_id: str) -> None:
        """Leave a job's try-on, if it runs here."""
        if attempt := self._active.get(job_id):
            attempt.cancel()

    async def retire(self) -> None:
        """Take no more jobs, and put those that run back, with their resume points."""
        for task in (*self._loops, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._loops, *self._tasks, return_exceptions=True)

    async def _take_jobs(self) -> None:
        await self.client.channel.grpc.channel_ready()
        outage = Outage(_log, "no job could be taken")
        with self.notifier.subscribe(WORK) as subscription:
            while True:
                leased, (paused, wait) = None, self._starts.paused()
                if len(self._tasks) < self.settings.runners:
                    try:
                        leased = await self._lease(paused)
                        outage.over()
                    except Exception as error:  # the database may come back
                        await asyncio.sleep(outage.failed(error))
                        continue
                if leased is None:
                    await subscription.wait(min(wait, self.settings.poll_seconds))
                    continue
                self._starts.started(leased.tenant)
                task = asyncio.create_task(self._run(leased))
                self._tasks.add(task)
                task.add_done_callback(self._ended)

    async def _lease(self, paused: Sequence[str]) -> Leased | None:
        """Lease a job of a tenant that may start one."""
        settings = self.settings
        return await self.leases.lease(
            self.owner, settings.lease_seconds, settings.most_of_tenant, paused
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.notifier.notify(WORK)

    async def _keep_hold(self) -> None:
        """Renew leases, and hear of cancels that came by other processes."""
        renewed, pause = 0.0, self.settings.poll_seconds
        outage = Outage(_log, "leases could not be renewed")
        while True:
            await asyncio.sleep(pause)
            pause = self.settings.poll_seconds
            if not self._active:
                continue
            try:
                if time.monotonic() - renewed > self.settings.lease_seconds / 3:
                    await self.leases.renew(self.owner, self.settings.lease_seconds)
                    renewed = time.monotonic()
                for job_id in await self.leases.cancelled(self.owner):
                    self.cancel(job_id)
                outage.over()
            except Exception as error:  # the leases tell how long that may last
                pause = min(outage.failed(error), self.settings.lease_seconds / 3)

    async def _run(self, leased: Leased) -> None:
        attempt = Attempt(leased, self)
        self._active[leased.id] = attempt
        context.attach(propagate.extract(leased.origin.carrier))  # this task's own
        self.notifier.notify(leased.id, OUTCOMES)
        try:
            await attempt.run()
        except LeaseLostError:
            _log.warning("another runner has the job", job=leased.id, fence=leased.fence)
        except Exception:  # the lease ends, and somebody else tries
            _log.exception("an attempt failed", job=leased.id)
        finally:
            del self._active[leased.id]
