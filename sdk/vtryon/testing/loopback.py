"""A channel and calls with the interface of grpc.aio, answered in the event loop of their caller.

Nothing is sent: a call reads its whole request, and runs the answer as a task. The status, the
deadline and cancellation reach the caller as grpc.aio reports them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
)
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import grpc

from vtryon.errors import VtryonError
from vtryon.wire.status import RpcStatus, to_rpc

_OK = RpcStatus(grpc.StatusCode.OK, "", ())
_CANCELLED = RpcStatus(grpc.StatusCode.CANCELLED, "Locally cancelled by application!", ())
_DEADLINE = RpcStatus(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ())


@dataclass(frozen=True, slots=True)
class LoopbackRequest:
    """A call as it arrives: path of the RPC, encoded messages, metadata, timeout in seconds."""

    path: str
    messages: list[bytes] = field(repr=False)
    metadata: dict[str, str]
    timeout_seconds: float | None


Answer = Callable[[LoopbackRequest], AsyncGenerator[bytes, None]]


class LoopbackCall:
    """A call, as `grpc.aio.Call`; awaited for one reply, or iterated for several.

    The answer runs at most one reply ahead of the reader. Its VtryonError is the status of the
    call; any other exception of it is raised to the reader as it is.

    Args:
        answer: gives the encoded replies.
        requests: gives the encoded messages of the request; an error of it cancels the call.
        timeout: deadline in seconds.
        read: decodes a reply; None leaves the bytes.
    """

    def __init__(
        self,
        answer: Callable[[list[bytes]], AsyncGenerator[bytes, None]],
        requests: AsyncIterator[bytes],
        timeout: float | None,
        read: Callable[[bytes], Any] | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._answer = answer
        self._requests = requests
        self._read = read or bytes
        self._replies: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(1)
        self._status: asyncio.Future[RpcStatus] = loop.create_future()
        self._fault: BaseException | None = None
        self._callbacks: list[Callable[[LoopbackCall], None]] = []
        self._until = None if timeout is None else time.monotonic() + timeout
        self.task = asyncio.create_task(self._run())
        if timeout is not None:
            timer = loop.call_later(timeout, self._abandon, _DEADLINE)
            self._status.add_done_callback(lambda _: timer.cancel())

    def cancel(self) -> bool:
        """Leave the call; the answer is cancelled. False where the call has ended."""
        return self._abandon(_CANCELLED)

    def cancelled(self) -> bool:
        """Whether the call has ended as cancelled."""
        return self.done() and self._status.result().code is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._status.done()

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline; None without one."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def add_done_callback(self, callback: Callable[[LoopbackCall], None]) -> None:
        """Call a function with this call when it ends."""
        self._callbacks.append(callback)

    async def code(self) -> grpc.StatusCode:
        """Wait for the status code."""
        return (await self._status).code

    async def details(self) -> str:
        """Wait for the message of the status."""
        return (await self._status).message

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Wait for the metadata of the status."""
        return grpc.aio.Metadata(*(await self._status).trailing_metadata)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._one().__await__()

    async def _one(self) -> Any:
        reply = await self._next()
        if reply is None:
            self._raise_for_status()
        return self._read(reply or b"")

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (reply := await self._next()) is not None:
            yield self._read(reply)
        self._raise_for_status()

    async def _next(self) -> bytes | None:
        """Wait for a reply; None at the end."""
        try:
            reply = await self._replies.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if reply is None:
            self._replies.put_nowait(None)  # it stays the end
        self._room.release()
        return reply

    def _raise_for_status(self) -> None:
        if self._fault is not None:
            raise self._fault
        status = self._status.result()
        if status.code is grpc.StatusCode.CANCELLED:
            raise asyncio.CancelledError
        if status is not _OK:
            trailing = grpc.aio.Metadata(*status.trailing_metadata)
            raise grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailing, status.message)

    async def _run(self) -> None:
        try:
            async with aclosing(self._answer(await self._received())) as replies:
                async for reply in replies:
                    await self._room.acquire()
                    self._replies.put_nowait(reply)
            self._end(_OK)
        except asyncio.CancelledError:
            self._end(_CANCELLED)
            raise
        except BaseException as error:
            if self.done():
                message = "a handler failed after its caller had left"
                facts = {"message": message, "exception": error, "task": self.task}
                asyncio.get_running_loop().call_exception_handler(facts)
            else:
                self._end(self._status_of(error))

    async def _received(self) -> list[bytes]:
        try:
            return [message async for message in self._requests]
        except Exception:  # the sender keeps it, and grpc.aio cancels the call as well
            self.cancel()
            raise asyncio.CancelledError from None

    def _status_of(self, error: BaseException) -> RpcStatus:
        if isinstance(error, VtryonError):
            return to_rpc(error)
        self._fault = error
        return RpcStatus(grpc.StatusCode.UNKNOWN, repr(error), ())

    def _abandon(self, status: RpcStatus) -> bool:
        """End the call without the replies that were not read."""
        if self.done():
            return False
        while not self._replies.empty():
            self._replies.get_nowait()
        self._end(status)
        self.task.cancel()
        return True

    def _end(self, status: RpcStatus) -> None:
        if self.done():
            return
        self._status.set_result(status)
        self._replies.put_nowait(None)
        for callback in self._callbacks:
            callback(self)


class LoopbackChannel:
    """A connection that is always ready, with the methods of `grpc.aio.Channel` that clients use.

    Args:
        answer: gives the encoded replies to a call.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._calls: set[LoopbackCall] = set()
        self._closed = asyncio.Event()

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> Callable[..., LoopbackCall]:
        """Return a function that begins a call with a stream of messages.

        Raises:
            grpc.aio.UsageError: on a call: the channel is closed.
        """

        def begin(
            requests: AsyncIterable[Any],
            *,
            timeout: float | None = None,
            metadata: Iterable[tuple[str, str]] = (),
        ) -> LoopbackCall:
            self._check_open()

            def answer(messages: list[bytes]) -> AsyncGenerator[bytes, None]:
                return self._answer(LoopbackRequest(method, messages, dict(metadata), timeout))

            encoded = _encoded(requests, request_serializer or bytes)
            return self._keep(LoopbackCall(answer, encoded, timeout, response_deserializer))

        return begin

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> Callable[..., LoopbackCall]:
        """Return a function that begins a call with one message.

        Raises:
            grpc.aio.UsageError: on a call: the channel is closed.
        """
        begin = self.stream_stream(method, request_serializer, response_deserializer)
        return lambda request, **options: begin(_once(request), **options)

    stream_unary = stream_stream  # a call can be awaited or iterated
    unary_unary = unary_stream

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return READY, or SHUTDOWN once closed."""
        states = grpc.ChannelConnectivity
        return states.SHUTDOWN if self._closed.is_set() else states.READY

    async def wait_for_state_change(self, _last: grpc.ChannelConnectivity) -> None:
        """Wait until the channel is closed.

        Raises:
            grpc.aio.UsageError: it is closed already.
        """
        self._check_open()
        await self._closed.wait()

    async def close(self, _grace: float | None = None) -> None:
        """Cancel the calls that are open, and wait until their answers have ended."""
        self._closed.set()
        for call in self._calls:
            call.cancel()
        if tasks := [call.task for call in self._calls]:
            await asyncio.wait(tasks)

    def _keep(self, call: LoopbackCall) -> LoopbackCall:
        self._calls.add(call)
        call.task.add_done_callback(lambda _: self._calls.discard(call))
        return call

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise grpc.aio.UsageError("Channel is closed.")


async def _encoded(
    messages: AsyncIterable[Any], serialize: Callable[[Any], bytes]
) -> AsyncIterator[bytes]:
    async for message in messages:
        yield serialize(message)


async def _once(message: Any) -> AsyncIterator[Any]:
    yield message
