"""A request on its way: awaitable, async-iterable, and an async context manager."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from vtryon.errors import ProtocolError, RequestError, RunCancelledError
from vtryon.events import (
    Accepted,
    Chunk,
    Event,
    Finished,
    Fit,
    Ledger,
    Output,
    StageStarted,
)
from vtryon.payloads import Assembler
from vtryon.pictures import Picture
from vtryon.stream import StreamCall
from vtryon.types import Payload, Stage

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Received:
    """All that a finished stream gave."""

    accepted: Accepted
    payloads: Sequence[Payload]
    buffers: Sequence[bytearray | memoryview]
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
        seed: what the noise was drawn from; the same request with it gives the same picture.
        ledger: where the time went.
        fits: how the pictures were brought to the checkpoint's size.
        accepted: what the pipeline chose.
        stages: what each stage chose: sigmas and size by sampling, the digests of the models.
    """

    picture: Picture
    seed: int | None
    accepted: Accepted
    stages: Mapping[Stage, Accepted]
    ledger: Ledger
    fits: tuple[Fit, ...]


class Run(Generic[T]):
    """A request on its way; it is sent when first awaited, iterated or entered.

    * ``await run`` gives the result.
    * ``async for event in run`` gives the events, without the bytes of the result; a run can be
      iterated once, and awaited afterwards for the result.
    * ``async with run`` cancels on exit what is not finished.

    Breaking out of the iteration, cancelling the task or leaving the context cancels the call; the
    server frees its slot before the next step. Awaiting a run that was left raises
    `RunCancelledError`.
    """

    def __init__(
        self,
        open_call: Callable[[], Awaitable[StreamCall]],
        finish: Callable[[Received], T],
    ) -> None:
        self._open_call = open_call
        self._finish = finish
        self._call: StreamCall | None = None
        self._started = False
        self._left = False
        self._result: T | None = None
        self._error: Exception | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Leave the call; does nothing where it has ended or never began."""
        self._left = True
        if self._call is not None:
            self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Give the events as they come.

        Raises:
            VtryonError: the request failed.
            RequestError: the run was iterated before.
        """
        if self._started:
            raise RequestError("a run can be iterated once; make another request")
        self._started = True
        try:
            self._call = await self._open_call()
            if self._left:
                raise RunCancelledError("the run was left before it was sent")
            async with self._call as call:
                received = _Receiver()
                async for event in call:
                    if received.keep(event):
                        yield event
                self._result = self._finish(received.all())
        except Exception as error:
            self._error = error
            raise

    async def _wait(self) -> T:
        if not self._started:
            async for _ in self:
                pass
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise RunCancelledError("the run was left before it finished")
        return self._result


class _Receiver:
    """Collects what a result needs, and says which events are for the user."""

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

    def all(self) -> Received:
        # The grammar has seen both before the stream could end.
        assert self._accepted is not None
        assert self._finished is not None
        assembler = self._assembler
        return Received(
            self._accepted, assembler.payloads, assembler.buffers, self._finished, self._stages
        )
