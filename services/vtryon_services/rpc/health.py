"""The health service of gRPC: small requests, a bounded number of watches, and watches that end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

_MAX_REQUEST_BYTES = 1024
# A number of health_pb2.HealthCheckResponse.ServingStatus.
_Status = int


class Health:
    """The gRPC health service. Its calls use no permits of other calls.

    Args:
        max_watches: maximum concurrent Watch streams; further ones are rejected.
    """

    def __init__(self, max_watches: int) -> None:
        self._max_watches = max_watches
        self._watches = 0
        self._statuses: dict[str, _Status] = {}
        self._changed = asyncio.Condition()
        self._over = False

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler for grpc.aio; requests stay bytes until their size is checked."""
        serialize = health_pb2.HealthCheckResponse.SerializeToString
        return grpc.method_handlers_generic_handler(
            health.SERVICE_NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(
                    self._check, response_serializer=serialize
                ),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self._watch, response_serializer=serialize
                ),
            },
        )

    async def set(self, service: str, status: _Status) -> None:
        """Say how a service is; the empty name speaks for the process."""
        if self._statuses.get(service) != status:
            async with self._changed:
                self._statuses[service] = status
                self._changed.notify_all()

    async def end_watches(self) -> None:
        """End all Watch streams after their pending updates."""
        async with self._changed:
            self._over = True
            self._changed.notify_all()

    async def _check(
        self, raw: bytes, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        service = _service_of(raw, context)
        status = self._statuses.get(service) if service is not None else None
        if service is not None and status is None:
            _refuse(context, grpc.StatusCode.NOT_FOUND, "no service of this name is served here")
        return health_pb2.HealthCheckResponse(status=status)

    async def _watch(
        self, raw: bytes, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        service = _service_of(raw, context)
        if service is None:
            return
        if self._watches >= self._max_watches:
            words = f"{self._watches} health watches are open, which is the limit; use Check"
            _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, words)
            return
        self._watches += 1
        try:
            async for status in self._changes(service):
                yield health_pb2.HealthCheckResponse(status=status)
        finally:
            self._watches -= 1

    async def _changes(self, service: str) -> AsyncIterator[_Status]:
        yield (told := self._status(service))
        while not self._over:
            async with self._changed:
                if self._status(service) == told:
                    await self._changed.wait()
            if (status := self._status(service)) != told:
                yield (told := status)

    def _status(self, service: str) -> _Status:
        unknown: int = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return self._statuses.get(service, unknown)


def _service_of(raw: bytes, context: grpc.aio.ServicerContext) -> str | None:
    """Read a service's name; None where the call is refused."""
    if len(raw) > _MAX_REQUEST_BYTES:
        words = f"a health request of {len(raw)} bytes; it takes {_MAX_REQUEST_BYTES}"
        _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, words)
        return None
    try:
        return str(health_pb2.HealthCheckRequest.FromString(raw).service)
    except DecodeError:
        _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "bytes that are no health request")
        return None


def _refuse(context: grpc.aio.ServicerContext, code: grpc.StatusCode, words: str) -> None:
    """Set a call's status. `abort` would raise an exception that keeps the request alive."""
    context.set_code(code)
    context.set_details(words)
