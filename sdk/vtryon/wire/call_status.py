"""How a call ended: the server's status, or a local error.

grpc.aio loses the status of a server that rejects a request while its payloads are being sent: the
failing write overwrites it with INTERNAL, "Internal error from Core" (grpc/grpc#36066, open in
1.85). Therefore the status is recorded on arrival and looked up here. grpc.aio also reports an
error of the request iterator as a cancelled call, which would end the caller's task without a
reason.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from math import inf
from typing import Any

import grpc

from vtryon.errors import DeadlineError, RunCancelledError, StageError, VtryonError
from vtryon.wire import status

_OVERWRITTEN = "Internal error from Core"
_PATIENCE_SECONDS = 1.0
_CLOCKS_SECONDS = 0.002  # between gRPC's deadline and ours, which begins behind it


class CallStatus:
    """Records how a call ends, and translates the exceptions of grpc.aio.

    Attributes:
        send_error: the error of sending the requests, if it ended the call.
    """

    def __init__(self) -> None:
        self.send_error: Exception | None = None
        self._call: Any = None
        self._deadline = inf
        self._ended: asyncio.Future[VtryonError] | None = None

    def watch(self, call: Any, seconds: float | None = None) -> None:
        """Record the status of this call when it arrives.

        Args:
            call: of grpc.aio; one with interceptors does not know its own remaining time.
            seconds: its timeout.
        """
        self._call = call
        self._deadline = inf if seconds is None else time.monotonic() + seconds
        self._ended = asyncio.get_running_loop().create_future()
        call.add_done_callback(self._record)

    async def error(self, raised: grpc.aio.AioRpcError) -> VtryonError:
        """Translate an exception of grpc.aio; prefer the server's status if there is one."""
        if self._ended is None or not _is_overwritten(raised.code(), raised.details()):
            return status.from_aio_error(raised)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await asyncio.shield(self._ended)
        except TimeoutError:
            return status.from_aio_error(raised)

    def cancellation(self) -> VtryonError | None:
        """Give the error of a cancelled call; None if it is this task that is being cancelled."""
        if is_being_cancelled() or self._call is None or not self._call.cancelled():
            return None
        if self.send_error is None:
            return self._ended_by_peer()
        if isinstance(self.send_error, VtryonError):
            return self.send_error
        return StageError(f"the request could not be sent: {self.send_error!r}")

    def _ended_by_peer(self) -> VtryonError:
        """Return the error of a reset; a server whose deadline passes first resets as well."""
        if time.monotonic() >= self._deadline - _CLOCKS_SECONDS:
            return DeadlineError("the deadline of the call has passed")
        return RunCancelledError("the call was cancelled")

    def _record(self, call: Any) -> None:
        code, message = _now(call.code()), _now(call.details())
        if self._ended is None or self._ended.done() or _is_overwritten(code, message):
            return
        trailing = _now(call.trailing_metadata())
        self._ended.set_result(status.from_rpc(code, message or code.name, trailing))


def is_being_cancelled() -> bool:
    """Whether this task is being cancelled, and not something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_overwritten(code: grpc.StatusCode, message: str | None) -> bool:
    return code is grpc.StatusCode.INTERNAL and message == _OVERWRITTEN


def _now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Give the result of a coroutine that has nothing to wait for: the call has ended."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("the call has not ended")
