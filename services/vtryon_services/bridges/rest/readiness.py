"""Whether the pipeline is ready: asked once for all who want to know at the same moment."""

from __future__ import annotations

import asyncio
import time

from grpc_health.v1 import health_pb2, health_pb2_grpc

from vtryon.errors import UnavailableError
from vtryon.wire.channel import Channel

_SERVING = health_pb2.HealthCheckResponse.SERVING
_ASKED = health_pb2.HealthCheckRequest(service="vtryon.v1.PipelineService")
_FRESH_SECONDS, _TIMEOUT_SECONDS = 0.5, 2.0


class Readiness:
    """Asks the pipeline's health service, at most twice a second."""

    def __init__(self, pipeline: Channel) -> None:
        self._stub = health_pb2_grpc.HealthStub(pipeline.grpc)
        self._asking: asyncio.Task[str] | None = None
        self._answered = 0.0

    async def check(self) -> None:
        """Return where it is ready.

        Raises:
            UnavailableError: it is not.
        """
        stale = time.monotonic() - self._answered > _FRESH_SECONDS
        if self._asking is None or (self._asking.done() and stale):
            self._asking = asyncio.create_task(self._ask())
        if problem := await asyncio.shield(self._asking):
            raise UnavailableError(problem)

    async def _ask(self) -> str:
        """Return the reason why the bridge is not ready; empty if it is."""
        try:
            answer = await self._stub.Check(_ASKED, timeout=_TIMEOUT_SECONDS)
        except Exception:  # whatever it is, the pipeline is not there
            problem = "the pipeline can't be reached"
        else:
            problem = "" if answer.status == _SERVING else "the pipeline is not ready"
        self._answered = time.monotonic()
        return problem
