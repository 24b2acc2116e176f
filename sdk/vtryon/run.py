"""A request on its way: awaitable, async-iterable, and an async context manager."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

from vtryon.errors import ProtocolError, RequestError, RunCancelledError, VtryonError
from vtryon.events import (
    Accepted,
    Chunk,
    Event,
    Finished,
    Fit,
    Ledger,
    Output,
    StageStarted,
    UnusedOption,
)
from vtryon.pictures import Picture
from vtryon.types import Payload, Stage
from vtryon.wire.call_status import is_being_cancelled
from vtryon.wire.payloads import Assembler
from vtryon.wire.retry import Attempts
from vtryon.wire.stream import StreamCall

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StreamedResult:
    """All that a finished stream gave."""

    accepted: Accepted
    payloads: Sequence[Payload]
    buffers: Sequence[bytearray | memoryview] = field(repr=False)
    finished: Finished
    stages: Mapping[Stage, Accepted]

    def picture(self) -> Picture:
        """Give the one picture of the output.

        Raises:
            ProtocolError: the output is something else.
        """
        if len(self.payloads) != 1 or self.payloads[0].image is None:
            raise ProtocolError("the output is not one picture")
        return Picture(self.payloads[0].image, bytes(self.buffers[0]))


@dataclass(frozen=True, slots=True)
class Result:
    """A finished try-on.

    Attributes:
        picture: the person wearing the garment.
        seed: the seed of the noise; an equal request with it gives an equal picture.
        ledger: the timings of the request.
        fits: how the input pictures were resized.
        accepted: the values that the pipeline chose.
        stages: the values that each stage chose, such as sigmas, size and model digests.
    """

    picture: Picture
    seed: int | None
    accepted: Accepted
    stages: Mapping[Stage, Accepted]
    ledger: Ledger
    fits: tuple[Fit, ...]

    def __repr__(self) -> str:
        return f"<Result: {self.picture!r}, seed {self.seed}, {self.ledger.wall_seconds:.2f} s>"

    def _repr_png_(self) -> bytes | None:
        """Show the picture in a notebook."""
        return self.picture._repr_png_()

    @property
    def model_digests(self) -> dict[str, str]:
        """Digests of the models that computed it, by the names of their stages."""
        return {
            stage.value: one.model_digest for stage, one in self.stages.items() if one.model_digest
        }

    @property
    def unused_options(self) -> tuple[UnusedOption, ...]:
        """Options of the request that had no effect, as reported by the pipeline and the stages."""
        said = (self.accepted, *self.stages.values())
        return tuple({one.field: one for own in said for one in own.unused_options}.values())


OpenCall = Callable[[float | None], Awaitable[StreamCall]]


class Run(Coroutine[Any, Any, T]):
    """A request in progress; it is sent when first awaited, iterated or entered.

    * ``await run`` returns the result. Several tasks may await one run, also during iteration.
    * ``async for event in run`` yields the events, without the bytes of the result. A run can be
      iterated once, and awaited afterwards for the result.
    * ``async with run`` cancels an unfinished run on exit.
    * ``group.create_task(run)``, ``asyncio.gather(run, ...)`` and ``asyncio.wait_for(run, 5)``
      accept it as a coroutine.

    Breaking out of the iteration, cancelling the task or leaving the context cancels the call; the
    server frees its batch slot before the next step. Awaiting a cancelled run raises
    `RunCancelledError`.

    Args:
        attempts: starts the attempts of the call; see `vtryon.wire.retry`.
        open_call: opens one attempt with a timeout in seconds.
        finish: builds the result from the received events.
    """

    def __init__(
        self,
        attempts: Callable[[], Attempts],
        open_call: OpenCall,
        finish: Callable[[StreamedResult], T],
    ) -> None:
        self._attempts = attempts
        self._open_call = open_call
        self._finish = finish
        self._waiting: asyncio.Task[float | None] | None = None
        self._call: StreamCall | None = None
        self._left = False
        self._result: T | None = None
        self._error: Exception | None = None
        self._ended: asyncio.Event | None = None  # made when the run starts
        self._iterator: weakref.ref[AsyncGenerator[Event, None]] | None = None
        self._reader: asyncio.Task[Any] | None = None
        self._coroutines: WeakKeyDictionary[asyncio.Task[Any], Coroutine[Any, Any, T]]
        self._coroutines = WeakKeyDictionary()

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    def send(self, value: Any) -> Any:
        """Go on as the coroutine of the current task; asyncio calls it."""
        return self._coroutine().send(value)

    def throw(self, *error: Any) -> Any:
        """Raise in the coroutine of the current task; asyncio calls it."""
        return self._coroutine().throw(*error)

    def close(self) -> None:
        """Leave the run, as `cancel`; asyncio calls it for a coroutine that it can't start."""
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Leave the call; does nothing where it has ended or never began."""
        self._left = True
        if self._waiting is not None:
            self._waiting.cancel()
        if self._call is not None:
            self._call.cancel()

    def __aiter__(self) -> AsyncGenerator[Event, None]:
        """Give the events as they come.

        Raises:
            VtryonError: the request failed.
            RequestError: the run was iterated or awaited before.
        """
        events = self._events(shown=True)
        if self._ended is None:
            self._iterator = weakref.ref(events)
        return events

    async def _events(self, *, shown: bool) -> AsyncGenerator[Event, None]:
        """Make attempts until one succeeds; none follows one of which an event was shown."""
        if self._ended is not None:
            raise RequestError("a run can be iterated once; make another request")
        self._ended = asyncio.Event()
        self._reader = asyncio.current_task()
        try:
            with self._attempts() as attempts:
                async for event in self._repeated(attempts, shown=shown):
                    yield event
        except Exception as error:
            self._error = error
            raise
        finally:
            self._ended.set()

    async def _repeated(self, attempts: Attempts, *, shown: bool) -> AsyncGenerator[Event, None]:
        while True:
            seen = False
            try:
                async with aclosing(self._attempt(attempts)) as events:
                    async for event in events:
                        seen = shown
                        yield event
                return
            except VtryonError as error:
                if seen or not attempts.again(error):
                    raise

    async def _attempt(self, attempts: Attempts) -> AsyncGenerator[Event, None]:
        call = self._call = await self._open_call(await self._ready(attempts))
        if self._left:
            raise RunCancelledError("the run was left before it was sent")
        received = _Receiver()
        async with call:
            async for event in call:
                if isinstance(event, Accepted):
                    attempts.let_in()
                if received.keep(event):
                    yield event
        self._result = self._finish(received.all())

    async def _ready(self, attempts: Attempts) -> float | None:
        if self._left:
            raise RunCancelledError("the run was left before it was sent")
        self._waiting = asyncio.create_task(attempts.ready())
        try:
            return await self._waiting
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            raise RunCancelledError("the run was left before it was sent") from None

    async def _wait(self) -> T:
        if self._ended is None:
            async for _ in self._events(shown=False):
                pass
        elif not self._ended.is_set():
            self._check_reader()
            await self._ended.wait()
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise RunCancelledError("the run was left before it finished")
        return self._result

    def _check_reader(self) -> None:
        """Refuse to wait for an iteration that this very task would have to go on with."""
        iterating = self._iterator is not None and self._iterator() is not None
        if iterating and self._reader is asyncio.current_task():
            raise RequestError(
                "this task iterates the run: await it after the iteration, or in another task"
            )

    def _coroutine(self) -> Coroutine[Any, Any, T]:
        task = asyncio.current_task()
        if task is None:
            raise RequestError("a run can be awaited in a task of an event loop only")
        if task not in self._coroutines:
            self._coroutines[task] = self._wait()
        return self._coroutines[task]


class _Receiver:
    """Collect the parts of a result, and select the events for the user."""

    def __init__(self) -> None:
        self._accepted: Accepted | None = None
        self._assembler = Assembler(())
        self._finished: Finished | None = None
        self._stages: dict[Stage, Accepted] = {}

    def keep(self, event: Event) -> bool:
        match event:
            case Output(payloads):
                self._assembler = Assembler(payloads)
                return False
            case Chunk():
                self._assembler.add(event)
                return False
            case Accepted():
                self._accepted = event
            case Finished():
                self._finished = event
            case StageStarted(Stage() as stage, _, Accepted() as accepted):
                self._stages[stage] = accepted
            case _:
                pass
        return True

    def all(self) -> StreamedResult:
        # The grammar has seen both before the stream could end.
        assert self._accepted is not None
        assert self._finished is not None
        assembler = self._assembler
        return StreamedResult(
            self._accepted, assembler.payloads, assembler.buffers, self._finished, self._stages
        )
