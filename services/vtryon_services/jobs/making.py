"""A new job: its pictures and its key are stored first, then the store names them."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import replace

from vtryon.jobs import CreateJobStart
from vtryon.seeds import draw_seed
from vtryon.threads import run_on_bytes
from vtryon.types import TryOnOptions
from vtryon.wire.payloads import Buffer
from vtryon_services.jobs.eraser import Eraser
from vtryon_services.jobs.origin import Origin
from vtryon_services.jobs.records import Kept, NewJob
from vtryon_services.jobs.seals import Seals
from vtryon_services.jobs.store import JobStore
from vtryon_services.rpc.call import Call
from vtryon_services.storage.artifacts import Artifacts


class Maker:
    """Makes jobs; a caller or a process that leaves at any point leaves nothing unnamed for long.

    The folder is noted in the store before it is written to. It is deleted when no job came of it:
    at once where this process lives on, else an hour later by any other.
    """

    def __init__(
        self, store: JobStore, artifacts: Artifacts, seals: Seals, eraser: Eraser, seconds: float
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._seals = seals
        self._eraser = eraser
        self._default_seconds = seconds
        self._under_way: set[asyncio.Task[tuple[Kept, bool]]] = set()

    async def make(
        self, start: CreateJobStart, pictures: Sequence[Buffer], call: Call
    ) -> tuple[Kept, bool]:
        """Make a job, or find the one of the same request id; true where it is new.

        Raises:
            RequestError: ALREADY_EXISTS, the id stands for something else.
            StorageError: it can't be kept.
        """
        left = asyncio.Event()
        # A store may go on writing when its caller is cancelled, so the caller leaves it alone.
        task = asyncio.create_task(self._make(start, pictures, call.tenant, left))
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            left.set()
            raise

    def _ended(self, task: asyncio.Task[tuple[Kept, bool]]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # its caller was told, or has left

    async def finish(self) -> None:
        """Wait for the cleanup of interrupted uploads."""
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _make(
        self,
        start: CreateJobStart,
        pictures: Sequence[Buffer],
        tenant: str,
        left: asyncio.Event,
    ) -> tuple[Kept, bool]:
        folder, named = uuid.uuid4().hex, False
        await self._store.erasures.expect(folder, tenant)
        try:
            new = await self._upload(start, pictures, tenant, folder)
            if left.is_set():
                raise asyncio.CancelledError
            kept, named = await self._store.create(new)
            return kept, named
        finally:
            if not named:
                await self._eraser.erase_leftover(folder)

    async def _upload(
        self, start: CreateJobStart, pictures: Sequence[Buffer], tenant: str, folder: str
    ) -> NewJob:
        options = start.options or TryOnOptions()
        digest = await run_on_bytes(sum(map(len, pictures)), digest_of, options, pictures)
        if options.seed is None:
            options = replace(options, seed=draw_seed())
        seal = await self._seals.make(folder)
        kinds = [payload.kind for payload in start.payloads]
        names = [
            await self._artifacts.put(f"{folder}/given-{index}", picture)
            for index, picture in enumerate(pictures)
        ]
        return NewJob(
            id=folder,
            tenant=tenant,
            request_id=start.request_id or uuid.uuid4().hex,
            digest=digest,
            options=replace(options, prompt="", negative_prompt=None),
            sealed=seal.close_prompts(options),
            pictures=[(kind, name) for kind, name in zip(kinds, names, strict=True) if kind],
            timeout_seconds=start.timeout_seconds or self._default_seconds,
            origin=Origin.here(start.correlation_id),
            labels=start.labels,
        )


def digest_of(options: TryOnOptions, pictures: Sequence[Buffer]) -> str:
    """Compute the digest of everything that affects the result; previews don't."""
    asked = replace(options, previews=None).to_proto().SerializeToString(deterministic=True)
    whole = hashlib.blake2b(asked, digest_size=32)
    for picture in pictures:
        whole.update(len(picture).to_bytes(8, "big"))
        whole.update(picture)
    return whole.hexdigest()
