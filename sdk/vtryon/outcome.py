"""The status that the server ended a call with.

grpc.aio loses it where a server refuses a request whose payloads are still being sent: the write
that then fails overwrites the status with INTERNAL, "Internal error from Core" (grpc/grpc#36066,
open in 1.85). So the status is taken down when it arrives, and looked up here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import grpc

from vtryon import status
from vtryon.errors import VtryonError

_OVERWRITTEN = "Internal error from Core"
_PATIENCE_SECONDS = 1.0


class Outcome:
    """Takes down how a call ends."""

    def __init__(self, call: Any) -> None:
        self._ended: asyncio.Future[VtryonError] = asyncio.get_running_loop().create_future()
        call.add_done_callback(self._take_down)

    async def error(self, raised: grpc.aio.AioRpcError) -> VtryonError:
        """Give the error of what grpc.aio raised: by the server's own status, if there is one."""
        if not _is_overwritten(raised.code(), raised.details()):
            return status.from_aio_error(raised)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await asyncio.shield(self._ended)
        except TimeoutError:
            return status.from_aio_error(raised)

    def _take_down(self, call: Any) -> None:
        code, message = _now(call.code()), _now(call.details())
        if not self._ended.done() and not _is_overwritten(code, message):
            trailing = _now(call.trailing_metadata())
            self._ended.set_result(status.from_rpc(code, message or code.name, trailing))


def _is_overwritten(code: grpc.StatusCode, message: str | None) -> bool:
    return code is grpc.StatusCode.INTERNAL and message == _OVERWRITTEN


def _now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Give the result of a coroutine that has nothing to wait for: the call has ended."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("the call has not ended")
