"""A client of Triton servers: owns streams, cancels, deadlines, and maps every failure to ours."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
import numpy as np
from tritonclient.grpc import KeepAliveOptions
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException

from vtryon.errors import (
    DeadlineError,
    OverloadedError,
    Reason,
    RunCancelledError,
    SettingsError,
    StageError,
    UnavailableError,
    VtryonError,
)
from vtryon.wire import status
from vtryon.wire.call_status import is_being_cancelled
from vtryon_services.triton.contract import Model, digest_parameter
from vtryon_services.triton.failures import from_message
from vtryon_services.triton.shared_memory import UNKNOWN_REGION, Regions

R = TypeVar("R")
Tensors = Mapping[str, np.ndarray]
Parameters = Mapping[str, str | int | float]
_AVOID_SECONDS = 1.0
_GONE = ("is not healthy", UNKNOWN_REGION)  # a model's process, or the server's memory of ours
# As between our own services: a frozen server is found in under 5 s.
_KEEPALIVE = KeepAliveOptions(
    keepalive_time_ms=2500, keepalive_timeout_ms=2000, http2_max_pings_without_data=0
)


class _TritonServer:
    """One server; `open` counts our requests in progress."""

    def __init__(self, url: str, shared_memory_from_bytes: int) -> None:
        self.url = url
        self.client = triton.InferenceServerClient(url, keepalive_options=_KEEPALIVE)
        self.regions = Regions(self.client, url, shared_memory_from_bytes)
        self.open = 0
        self.failed_at = float("-inf")
        self.is_known = False  # to have the models that the pool expects
        self.is_other = False  # its models are not those that the pool expects

    @property
    def load(self) -> tuple[bool, bool, int]:
        """How much there is against asking it: other models, a failure just now, then work."""
        return self.is_other, time.monotonic() - self.failed_at < _AVOID_SECONDS, self.open

    async def describe(self, model: Model) -> dict[str, str]:
        """Return the export metadata of a model."""
        answer = await self.client.get_model_config(model.value, client_timeout=5.0)
        return {name: one.string_value for name, one in answer.config.parameters.items()}


class TritonPool:
    """Servers with the same models; each request goes to the least loaded one.

    `agree` determines the models. From then on every request carries the expected digests, and a
    server with other digests is avoided while there is another one.

    Shapes:
        tensors, everywhere: without the leading 1 of the models' shapes.

    Raises, everywhere:
        VtryonError: the model's own error, or the translated error of the transport.
    """

    def __init__(self, urls: Sequence[str], shared_memory_from_bytes: int = 0) -> None:
        self._servers = [_TritonServer(url, shared_memory_from_bytes) for url in urls]
        self._saying: set[asyncio.Task[None]] = set()
        self._expected: dict[Model, str] = {}

    @classmethod
    def of(cls, urls: str, shared_memory_from_bytes: int) -> TritonPool:
        """Create a pool from host:port, several of them separated by commas.

        Raises:
            SettingsError: there is none.
        """
        found = [url.strip() for url in urls.split(",") if url.strip()]
        if not found:
            raise SettingsError("the triton backend needs VTRYON_TRITON_URL, host:port")
        return cls(found, shared_memory_from_bytes)

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*self._saying)
        for server in self._servers:
            await server.regions.close()
            await server.client.close()

    async def is_ready(self, model: Model) -> bool:
        """Whether any server can serve a model, with the digests that are expected.

        A server that was away, or had other models, is asked for its digests again.
        """
        for server in self._servers:
            try:
                if await server.client.is_model_ready(model.value, client_timeout=2.0):
                    if not server.is_known:
                        await self._look_at(server)
                    if not server.is_other:
                        return True
                    continue
            except (InferenceServerException, grpc.aio.AioRpcError):
                pass
            server.is_known = False
        return False

    async def _look_at(self, server: _TritonServer) -> None:
        found = {model: (await server.describe(model)).get("digest") for model in self._expected}
        server.is_other = found != self._expected
        server.is_known = not server.is_other

    async def agree(self, models: Sequence[Model]) -> dict[Model, dict[str, str]]:
        """Return the export metadata of models; all responding servers must have the same.

        Raises:
            SettingsError: the servers differ, or the models are not of our export.
        """
        described: dict[Model, dict[str, str]] = {}
        holders: dict[Model, str] = {}
        for server in self._servers:
            try:
                found = {model: await server.describe(model) for model in models}
            except (InferenceServerException, grpc.aio.AioRpcError):
                continue  # it is asked when it is there
            server.is_known = True
            for model, one in found.items():
                if not one.get("digest"):
                    raise SettingsError(
                        f"the model {model} at {server.url} has no digest: make the repository "
                        "with `vtryon models export-triton`"
                    )
                own = described.setdefault(model, one)["digest"]
                if one["digest"] != own:
                    raise SettingsError(
                        f"the Triton servers have different checkpoints: the digest of {model} is "
                        f"{own[:12]} at {holders[model]} and {one['digest'][:12]} at "
                        f"{server.url}; serve one export on all of them"
                    )
                holders.setdefault(model, server.url)
        if not described:
            raise SettingsError("no Triton server says which models it has")
        self._expected = {model: one["digest"] for model, one in described.items()}
        return described

    def _with_digests(self, parameters: Parameters) -> dict[str, str | int | float]:
        expected = {digest_parameter(model): one for model, one in self._expected.items()}
        return {**expected, **parameters}

    async def infer(
        self,
        model: Model,
        tensors: Tensors,
        parameters: Parameters | None = None,
        timeout_seconds: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Ask a model that answers once; cancelling the task cancels the request."""

        async def ask(server: _TritonServer) -> dict[str, np.ndarray]:
            async with server.regions.inputs(tensors) as inputs:
                result = await server.client.infer(
                    model.value,
                    inputs,
                    parameters=self._with_digests(parameters or {}),
                    client_timeout=timeout_seconds,
                )
            return _outputs(result)

        return await self._somewhere(ask)

    async def stream(
        self,
        model: Model,
        tensors: Tensors,
        parameters: Parameters,
        timeout_seconds: float | None = None,
        at_leaving: tuple[Model, Tensors] | None = None,
    ) -> AsyncGenerator[dict[str, np.ndarray], None]:
        """Call a decoupled model; closing the generator cancels the request.

        The message `at_leaving`, before the last response, goes to the same server.
        """
        async with self._chosen() as server, server.regions.inputs(tensors) as inputs:
            requests = _once(model, inputs, self._with_digests(parameters))
            answers = server.client.stream_infer(requests, stream_timeout=timeout_seconds)
            over = False
            try:
                async for result, error in answers:
                    if error is not None:
                        raise error
                    over = result.get_response().parameters["triton_final_response"].bool_param
                    yield _outputs(result)
                    if over:
                        return
                raise UnavailableError("the Triton server ended a stream before its last response")
            except asyncio.CancelledError:
                if is_being_cancelled():
                    raise
                # tritonclient cancels its own call where a request can't be written.
                raise StageError("the request could not be sent to the Triton server") from None
            finally:
                answers.cancel()
                if at_leaving is not None and not over:
                    task = asyncio.create_task(self._say(server, *at_leaving))
                    self._saying.add(task)
                    task.add_done_callback(self._saying.discard)

    async def _say(self, server: _TritonServer, model: Model, tensors: Tensors) -> None:
        """Send a request without waiting for its response."""
        with contextlib.suppress(InferenceServerException, grpc.aio.AioRpcError):
            async with server.regions.inputs(tensors) as inputs:
                requests = _once(model, inputs, {})
                async for _ in server.client.stream_infer(requests, stream_timeout=2.0):
                    return

    async def _somewhere(self, ask: Callable[[_TritonServer], Awaitable[R]]) -> R:
        async with self._chosen() as server:
            return await ask(server)

    @asynccontextmanager
    async def _chosen(self) -> AsyncIterator[_TritonServer]:
        """Choose a server, count the work, and give its failures our names."""
        server = min(self._servers, key=lambda one: one.load)
        server.open += 1
        try:
            yield server
        except (InferenceServerException, grpc.aio.AioRpcError) as error:
            failure = _named(error)
            if failure.reason is Reason.MODEL_CHANGED:
                server.is_known, server.is_other = False, True
                failure = UnavailableError(
                    f"a Triton server has another checkpoint than at the start ({failure.message}):"
                    " restart this service once all servers have it"
                )
            if isinstance(failure, UnavailableError):
                server.failed_at, server.is_known = time.monotonic(), False
            raise failure from None
        finally:
            server.open -= 1


async def _once(
    model: Model, inputs: list[Any], parameters: Parameters
) -> AsyncIterator[dict[str, Any]]:
    yield {"model_name": model.value, "inputs": inputs, "parameters": dict(parameters)}


def _outputs(result: Any) -> dict[str, np.ndarray]:
    names = [output.name for output in result.get_response().outputs]
    return {name: result.as_numpy(name)[0] for name in names}


def _named(error: InferenceServerException | grpc.aio.AioRpcError) -> VtryonError:
    if isinstance(error, grpc.aio.AioRpcError):
        return status.from_aio_error(error)
    message = error.message() or "no message"
    if (ours := from_message(message)) is not None:
        return ours
    code = (error.status() or "").removeprefix("StatusCode.")
    if code in {"UNAVAILABLE", "NOT_FOUND"} or any(sign in message for sign in _GONE):
        return UnavailableError(f"the Triton server can't serve: {message}")
    if code == "DEADLINE_EXCEEDED":
        return DeadlineError(f"out of time at the Triton server: {message}")
    if code == "CANCELLED":
        return RunCancelledError(f"the Triton server cancelled the request: {message}")
    if "Exceeds maximum queue size" in message:
        return OverloadedError(f"the Triton server's queue is full: {message}")
    return StageError(f"the Triton server refused the request: {message}")
