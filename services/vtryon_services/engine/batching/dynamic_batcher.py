"""Work of one kind, done together while the thread that does it was busy with something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class DynamicBatcher(Generic[T, R]):
    """Dynamic batching: items that queue up while the worker thread is busy run as one batch.

    An idle executor starts at once, without waiting for more items.

    Args:
        executor: of one thread.
        work: processes a list of items, and returns a result for each.
        key: items with different keys are batched separately: by shape, for instance.
        limit: maximum batch size.
    """

    def __init__(
        self,
        executor: Executor,
        work: Callable[[Sequence[T]], Sequence[R]],
        key: Callable[[T], Hashable],
        limit: int,
    ) -> None:
        self._executor = executor
        self._work = work
        self._key = key
        self._limit = limit
        self._lock = threading.Lock()
        self._pending: list[tuple[T, Future[R]]] = []

    def submit(self, *items: T) -> list[Future[R]]:
        """Submit items; cancelling a future withdraws its item if it was not started."""
        futures: list[Future[R]] = [Future() for _ in items]
        with self._lock:
            idle = not self._pending
            self._pending += zip(items, futures, strict=True)
        if idle and items:
            self._executor.submit(self._run)
        return futures

    def _run(self) -> None:
        with self._lock:
            batch = self._take()
            if self._pending:
                self._executor.submit(self._run)
        begun = [pair for pair in batch if pair[1].set_running_or_notify_cancel()]
        if begun:
            self._do(begun)

    def _take(self) -> list[tuple[T, Future[R]]]:
        wanted = self._key(self._pending[0][0])
        alike = [pair for pair in self._pending if self._key(pair[0]) == wanted][: self._limit]
        taken = {id(future) for _, future in alike}
        self._pending = [pair for pair in self._pending if id(pair[1]) not in taken]
        return alike

    def _do(self, batch: Sequence[tuple[T, Future[R]]]) -> None:
        """Run a batch; after a failure, run its items one by one: only failing ones fail."""
        try:
            results = self._work([item for item, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for pair in batch:
                self._do([pair])
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
