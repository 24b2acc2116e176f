"""Doing a batch: so many at once, each until it is done or can't be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from vtryon.batch.entries import BatchEntry
from vtryon.batch.journal import Journal, JournalLine
from vtryon.client import Client
from vtryon.errors import (
    OverloadedError,
    Reason,
    RequestError,
    SettingsError,
    UnavailableError,
    VtryonError,
)
from vtryon.files import strict
from vtryon.pictures import SUFFIXES
from vtryon.run import Result
from vtryon.types import ImageFormat, Lora, Priority

_ATTEMPTS = 8
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass(slots=True)
class BatchCounts:
    """How many entries were there already, and how many could not be done."""

    skipped: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Models:
    """Models that the mesh uses, once requested."""

    digests: dict[tuple[Lora, ...], dict[str, str]] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class Batch:
    """Parameters of a batch; an entry's own options take precedence.

    Attributes:
        tell: called after every entry, with its outcome and the totals so far.
    """

    client: Client
    out: Path
    journal: Journal
    options: Mapping[str, Any]
    format: ImageFormat = ImageFormat.PNG
    concurrency: int = 8
    counts: BatchCounts = field(default_factory=BatchCounts)
    tell: Callable[[JournalLine, BatchCounts], None] = lambda _line, _counts: None
    models: _Models = field(default_factory=_Models)

    @property
    def common(self) -> dict[str, Any]:
        """Parameters that affect results, apart from an entry's own options."""
        return {**self.options, "format": self.format}

    async def run(self, entries: Iterable[BatchEntry] | AsyncIterator[BatchEntry]) -> None:
        """Process entries as they arrive, with bounded concurrency; leaving cancels running ones.

        Raises:
            SettingsError: results can't be written; finished entries are kept.
        """
        room = asyncio.Semaphore(self.concurrency)
        try:
            async with asyncio.TaskGroup() as group:
                async for entry in _each(entries):
                    await room.acquire()
                    task = group.create_task(self._do(entry))
                    task.add_done_callback(lambda _: room.release())
        except ExceptionGroup as failed:
            # Not `except*`, from which Python below 3.11.4 raises groups alone.
            ours, others = failed.split(SettingsError)
            if ours is None or others is not None:
                raise
            raise ours.exceptions[0] from None

    async def _do(self, entry: BatchEntry) -> None:
        key, keep = "", self.journal.write
        try:
            key = entry.key(self.common)
            if self.journal.is_done(entry.name, key):
                keep = self.journal.report  # its result stays good until it is known not to be
                if await self._has_same_models(entry):
                    self.counts.skipped += 1
                    self.tell(self.journal.confirm(entry.name), self.counts)
                    return
                keep = self.journal.write
            line = await self._draw(entry, key)
        except SettingsError:
            raise
        except VtryonError as error:
            line = failed_line(entry, key, error)
            self.counts.failed += 1
        keep(line)
        self.tell(line, self.counts)

    async def _has_same_models(self, entry: BatchEntry) -> bool:
        """Whether the mesh computes with the models that an earlier result has.

        It is asked once for each choice of LoRAs, which are part of a model's digest, by a try-on
        of one step. A model without a digest may be another one.
        """
        loras = tuple({**self.options, **entry.options}.get("loras", ()))
        async with self.models.lock:
            if loras not in self.models.digests:
                result = await self._try_on(entry, steps=1, strength=None, sigmas=())
                self.models.digests[loras] = _digests(result)
        digests = self.models.digests[loras]
        return self.journal.lines[entry.name].digests == digests and all(digests.values())

    async def _draw(self, entry: BatchEntry, key: str) -> JournalLine:
        started = time.monotonic()
        result = await self._try_on(entry, request_id=f"batch-{key}")
        suffix = next(one for one, kind in SUFFIXES.items() if kind is self.format)
        name = f"{entry.name}{suffix}"
        try:
            await asyncio.to_thread(result.picture.save, self.out / name)
        except OSError as error:
            raise SettingsError(f"can't write {name}: {error.strerror}") from error
        seconds = round(time.monotonic() - started, 3)
        return JournalLine(
            *(entry.name, key, name, result.seed, seconds),
            digests=_digests(result),
            fits=[asdict(fit) for fit in result.fits],
            unused_options=[asdict(one) for one in result.unused_options],
        )

    async def _try_on(self, entry: BatchEntry, **other: Any) -> Result:
        assert entry.person is not None, "its key was made"
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((OverloadedError, UnavailableError)),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=_pause,
            reraise=True,
        ):
            with attempt:
                options = {"priority": Priority.BATCH, **self.options, **entry.options, **other}
                return await self.client.try_on(
                    entry.person,
                    list(entry.garments),
                    **strict.arguments(options),
                    previews=False,
                    format=self.format,
                )
        raise AssertionError("unreachable: the last attempt raises")


def failed_line(entry: BatchEntry, key: str = "", error: VtryonError | None = None) -> JournalLine:
    """Say why an entry has no result: an error, or the problem it was found with."""
    reason = (error.reason if error else Reason.FIELD_INVALID) or ""
    message = error.message if error else entry.problem
    return JournalLine(entry.name, key, reason=str(reason), message=message)


def _digests(result: Result) -> dict[str, str]:
    return {str(stage): one.model_digest for stage, one in result.stages.items()}


def _pause(state: RetryCallState) -> float:
    """Wait as long as the mesh says, or else a little longer each time."""
    error = state.outcome.exception() if state.outcome else None
    least = error.retry_after_seconds if isinstance(error, OverloadedError) else 0.2
    return min(_LONGEST_PAUSE_SECONDS, least * 2.0 ** (state.attempt_number - 1))


async def _each(
    entries: Iterable[BatchEntry] | AsyncIterator[BatchEntry],
) -> AsyncIterator[BatchEntry]:
    if isinstance(entries, AsyncIterator):
        async for entry in entries:
            yield entry
        return
    for entry in entries:
        yield entry


async def watch(
    look: Callable[[], list[BatchEntry]], seconds: float, keys: Callable[[BatchEntry], str]
) -> AsyncIterator[BatchEntry]:
    """Give entries as they appear, once they have stayed the same from one look to the next."""
    seen: dict[str, str] = {}
    given: set[tuple[str, str]] = set()
    while True:
        for entry in look():
            try:
                key = keys(entry)
            except RequestError:
                continue  # on its way
            if seen.get(entry.name) == key and (entry.name, key) not in given:
                given.add((entry.name, key))
                yield entry
            seen[entry.name] = key
        await asyncio.sleep(seconds)
