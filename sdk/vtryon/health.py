"""The health of a server, by the standard service of gRPC (grpc.health.v1)."""

from __future__ import annotations

import asyncio
import time
from enum import IntEnum

import grpc

from vtryon.errors import UnavailableError
from vtryon.wire import status
from vtryon.wire.channel import Channel

CHECK = "/grpc.health.v1.Health/Check"
_PAUSE_SECONDS = 0.2
_CALL_SECONDS = 5.0


class ServingStatus(IntEnum):
    """Of grpc.health.v1: `HealthCheckResponse.ServingStatus`."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


async def wait_until_serving(channel: Channel, timeout_seconds: float) -> None:
    """Ask until the server says that it serves.

    Raises:
        SettingsError: the server can't be connected as the channel is set up.
        AccessError: the server refuses the caller.
        UnavailableError: it did not serve in time, or has no health service.
    """
    until = time.monotonic() + timeout_seconds
    state = "it has not answered"
    while (left := until - time.monotonic()) > 0:
        await channel.connected(left)
        try:
            answer = await _check(channel, min(left, _CALL_SECONDS))
        except grpc.aio.AioRpcError as error:
            if error.code() not in {
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            }:
                raise status.from_aio_error(error) from None
            state = f"the last check ended with {error.code().name}"
        else:
            if answer is ServingStatus.SERVING:
                return
            state = f"its health is {answer.name}"
        await asyncio.sleep(min(_PAUSE_SECONDS, max(0.0, until - time.monotonic())))
    raise UnavailableError(
        f"{channel.target} did not serve within {timeout_seconds:.3g} s: {state}"
    )


async def _check(channel: Channel, seconds: float) -> ServingStatus:
    """Call `Check` for the server as a whole; its two messages are small enough to do by hand."""
    call = channel.grpc.unary_unary(CHECK)
    reply: bytes = await call(b"", timeout=seconds, metadata=channel.metadata())
    return ServingStatus(reply[1]) if len(reply) == 2 else ServingStatus.UNKNOWN
