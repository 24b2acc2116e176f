"""How responses leave: by a thread of their own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

from vtryon.errors import RunCancelledError, VtryonError
from vtryon_services.engine.batching.batcher import BatchedRequest, Stepped
from vtryon_services.engine.plan import QueuePosition

_log = logging.getLogger("vtryon.triton")
_POLL_SECONDS = 0.05


class Answerer(Protocol):
    """Makes and sends the responses of one request, on the outbox's thread."""

    @property
    def abandoned(self) -> bool:
        """Whether the caller has left."""
        ...

    def on_queued(self, position: QueuePosition) -> None:
        """Say how many go first."""
        ...

    def on_step(self, step: Stepped) -> None:
        """Send the result of a step."""
        ...

    def on_end(self, error: VtryonError | None) -> None:
        """Say the last word."""
        ...


class ResponseSender:
    """Sends responses and notices who has left, on a thread of its own: no step waits for it."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open: dict[Answerer, BatchedRequest] = {}
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def sink(self, batched: BatchedRequest, answers: Answerer) -> Posted:
        """Make the sink of a request."""
        posted = Posted(self._work, answers, self._close_one)
        self._work.put(lambda: self._open.__setitem__(answers, batched))
        return posted

    def close(self) -> None:
        """Send pending responses."""
        self._work.put(None)
        self._thread.join(5)

    def _close_one(self, answers: Answerer) -> None:
        self._open.pop(answers, None)

    def _run(self) -> None:
        polled = time.monotonic()
        while True:
            try:
                work = self._work.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                work = _nothing
            if work is None:
                return
            try:
                work()
            except Exception:
                _log.exception("a response could not be sent")
            if time.monotonic() - polled >= _POLL_SECONDS / 10:
                polled = time.monotonic()
                self._poll()

    def _poll(self) -> None:
        """Release requests whose clients have left; FINAL is sent all the same."""
        for answers, batched in list(self._open.items()):
            if answers.abandoned:
                batched.cancel()
                self._close_one(answers)
                answers.on_end(RunCancelledError("the caller has left"))


class Posted:
    """A `Sink` whose calls become work of the response sender."""

    def __init__(
        self,
        work: queue.SimpleQueue[Callable[[], None] | None],
        answers: Answerer,
        close: Callable[[Answerer], None],
    ) -> None:
        self._work = work
        self._answers = answers
        self._close = close

    def on_queued(self, position: QueuePosition) -> None:
        """Post a place in the queue."""
        self._work.put(lambda: self._answers.on_queued(position))

    def on_step(self, step: Stepped) -> None:
        """Post a step."""
        self._work.put(lambda: self._answers.on_step(step))

    def on_end(self, error: VtryonError | None) -> None:
        """Post the end."""

        def end() -> None:
            self._close(self._answers)
            self._answers.on_end(error)

        self._work.put(end)


def _nothing() -> None:
    pass
