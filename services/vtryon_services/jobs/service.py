"""Jobs on the wire."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from opentelemetry import propagate

from vtryon import events
from vtryon.client import Client
from vtryon.events import Event, Finished
from vtryon.jobs import (
    CancelJob,
    CreateJobStart,
    EraseJob,
    FetchPicture,
    GetJob,
    Job,
    JobPage,
    ListJobs,
    WatchJob,
)
from vtryon.payloads import Buffer, outgoing_image
from vtryon.retry import FOR_SERVICES
from vtryon.seeds import draw_seed
from vtryon.types import MAX_GARMENTS, PayloadKind, Stage, TryOnOptions
from vtryon.v1 import job_pb2
from vtryon_services.jobs.bell import OUTCOMES, WORK, Bell
from vtryon_services.jobs.database import Database
from vtryon_services.jobs.ledger import Ledger, Limits
from vtryon_services.jobs.outcomes import outcome_service
from vtryon_services.jobs.records import NewJob
from vtryon_services.jobs.runner import Runner
from vtryon_services.jobs.settings import JobsSettings
from vtryon_services.runtime.adapter import Service
from vtryon_services.runtime.artifacts import Artifacts
from vtryon_services.runtime.call import Call, Incoming, accepted, send_output
from vtryon_services.runtime.declarations import check_pictures
from vtryon_services.runtime.method import Method, Replies, Serve
from vtryon_services.runtime.ranges import (
    check_labels,
    check_options,
    check_request_id,
    field_error,
)
from vtryon_services.runtime.settings import JOBS

_NAME = "vtryon.v1.JobService"
_LONGEST_SECONDS = 30 * 86_400.0
_CANCEL_SECONDS = 5.0
_PAGE, _LARGEST_PAGE = 100, 1000


async def make_services(settings: JobsSettings) -> list[Service]:
    """Open ledger and artifacts, and begin to run jobs.

    Raises:
        SettingsError: one of them can't be used.
    """
    artifacts = Artifacts.open(settings.artifacts_url)
    database = await Database.open(settings.database_url)
    limits = Limits(settings.max_waiting, settings.max_attempts, settings.keep_seconds)
    ledger, bell = Ledger(database, limits, published=settings.outbox), Bell()
    client = await Client(settings.pipeline_target, retry=FOR_SERVICES).__aenter__()
    runner = Runner(ledger, artifacts, client, bell, settings)
    runner.start()
    jobs = Jobs(ledger, artifacts, runner, bell, settings)

    async def close() -> None:
        await client.__aexit__(None, None, None)
        await database.close()

    return [
        Service(JOBS, _NAME, jobs.methods(), settings, retire=runner.retire, close=close),
        outcome_service(ledger.outbox, bell, settings),
    ]


class Jobs:
    """Serves `JobService`; every job is looked up with the caller's tenant."""

    def __init__(
        self,
        ledger: Ledger,
        artifacts: Artifacts,
        runner: Runner,
        bell: Bell,
        settings: JobsSettings,
    ) -> None:
        self._ledger = ledger
        self._artifacts = artifacts
        self._runner = runner
        self._bell = bell
        self._settings = settings

    def methods(self) -> tuple[Method[Any], ...]:
        """Name the calls."""

        def one(name: str, request: type, start: type, serve: Serve[Any]) -> Method[Any]:
            return Method(
                name,
                request,
                start,
                serve,
                streams_requests=False,
                replies=Replies.ONE,
            )

        return (
            Method(
                "CreateJob",
                job_pb2.CreateJobRequest,
                CreateJobStart,
                self.create,
                replies=Replies.ONE,
            ),
            one("GetJob", job_pb2.GetJobRequest, GetJob, self.get),
            one("ListJobs", job_pb2.ListJobsRequest, ListJobs, self.list),
            one("CancelJob", job_pb2.CancelJobRequest, CancelJob, self.cancel),
            one("EraseJob", job_pb2.EraseJobRequest, EraseJob, self.erase),
            Method(
                "WatchJob",
                job_pb2.WatchJobRequest,
                WatchJob,
                self.watch,
                streams_requests=False,
                replies=Replies.MESSAGES,
                ends_at_drain=True,
            ),
            Method(
                "FetchPicture",
                job_pb2.FetchPictureRequest,
                FetchPicture,
                self.fetch,
                streams_requests=False,
            ),
        )

    async def create(
        self, start: CreateJobStart, incoming: Incoming, call: Call
    ) -> AsyncGenerator[Job, None]:
        """Serve `CreateJob`."""
        options = start.options or TryOnOptions()
        _check(start, options)
        pictures = await incoming.receive()
        kinds = [payload.kind for payload in start.payloads]
        digest = await asyncio.to_thread(_digest, options, pictures)
        if options.seed is None:
            options = replace(options, seed=draw_seed())
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        folder = uuid.uuid4().hex
        names = [
            await self._artifacts.put(f"{folder}/{index}", picture)
            for index, picture in enumerate(pictures)
        ]
        new = NewJob(
            tenant=call.tenant,
            request_id=start.request_id or uuid.uuid4().hex,
            digest=digest,
            options=options,
            pictures=[(kind, name) for kind, name in zip(kinds, names, strict=True) if kind],
            timeout_seconds=start.timeout_seconds or self._settings.job_timeout_seconds,
            traceparent=carrier.get("traceparent", ""),
            labels=start.labels,
        )
        # A caller that leaves now may leave a job behind, but none without its pictures.
        yield await asyncio.shield(self._keep(new))

    async def _keep(self, new: NewJob) -> Job:
        """Make the job, or forget the pictures that it was asked for with."""
        kept = False
        try:
            job, kept = await self._ledger.create(new)
        finally:
            if not kept:
                await self._artifacts.erase([name for _, name in new.pictures])
        self._bell.ring(WORK, OUTCOMES)
        return job

    async def get(self, asked: GetJob, _: Incoming, call: Call) -> AsyncGenerator[Job, None]:
        """Serve `GetJob`."""
        yield await self._ledger.get(call.tenant, asked.id)

    async def list(self, asked: ListJobs, _: Incoming, call: Call) -> AsyncGenerator[JobPage, None]:
        """Serve `ListJobs`."""
        size = min(asked.page_size or _PAGE, _LARGEST_PAGE)
        yield await self._ledger.page(call.tenant, asked.states, size, asked.page_token)

    async def cancel(self, asked: CancelJob, _: Incoming, call: Call) -> AsyncGenerator[Job, None]:
        """Serve `CancelJob`."""
        yield await self._cancel(call.tenant, asked.id)

    async def _cancel(self, tenant: str, job_id: str) -> Job:
        job = await self._ledger.cancel(tenant, job_id)
        self._runner.cancel(job_id)
        self._bell.ring(job_id, OUTCOMES)
        with self._bell.listen(job_id) as news, suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_SECONDS):
                while not job.ended:
                    await news.wait(self._settings.poll_seconds)
                    job = await self._ledger.get(tenant, job_id)
        return job

    async def erase(self, asked: EraseJob, _: Incoming, call: Call) -> AsyncGenerator[Job, None]:
        """Serve `EraseJob`."""
        await self._cancel(call.tenant, asked.id)
        job, folders = await self._ledger.erase(call.tenant, asked.id)
        await self._artifacts.erase_folders(folders)
        yield job

    async def watch(self, asked: WatchJob, _: Incoming, call: Call) -> AsyncGenerator[bytes, None]:
        """Serve `WatchJob`: the ledger's rows, as they are."""
        job = await self._ledger.get(call.tenant, asked.id)
        following = max(1, asked.from_sequence)
        if job.ended and following > job.sequence:
            return  # asked for what is behind the end
        with self._bell.listen(asked.id) as news:
            while True:
                for body in await self._ledger.updates_of(asked.id, following):
                    update = job_pb2.JobUpdate.FromString(body)
                    following = update.sequence + 1
                    yield body
                    if update.job.state in _ENDED:
                        return
                await news.wait(self._settings.poll_seconds)

    async def fetch(
        self, asked: FetchPicture, _: Incoming, call: Call
    ) -> AsyncGenerator[Event, None]:
        """Serve `FetchPicture`."""
        job, artifact = await self._ledger.picture(call.tenant, asked.id)
        data = await self._artifacts.get(artifact)
        yield accepted(Stage.PIPELINE, call)
        async for event in send_output([outgoing_image(PayloadKind.IMAGE, data, job.picture)]):
            yield event
        yield Finished(job.ledger or events.Ledger(0.0), job.fits)


_ENDED = {
    job_pb2.JOB_STATE_SUCCEEDED,
    job_pb2.JOB_STATE_FAILED,
    job_pb2.JOB_STATE_CANCELLED,
}


def _check(start: CreateJobStart, options: TryOnOptions) -> None:
    """Refuse what the pipeline would refuse, before it is kept."""
    check_options(options)
    if start.request_id:
        check_request_id(start.request_id)
    check_labels(start.labels)
    seconds = start.timeout_seconds
    if seconds is not None and not 0 < seconds <= _LONGEST_SECONDS:
        raise field_error("timeout_seconds", f"takes more than 0 and at most {_LONGEST_SECONDS:g}")
    check_pictures(start.payloads, MAX_GARMENTS)


def _digest(options: TryOnOptions, pictures: Sequence[Buffer]) -> str:
    """Stand for everything that decides what is drawn: previews don't."""
    asked = replace(options, previews=None).to_proto().SerializeToString(deterministic=True)
    whole = hashlib.blake2b(asked, digest_size=32)
    for picture in pictures:
        whole.update(len(picture).to_bytes(8, "big"))
        whole.update(picture)
    return whole.hexdigest()
