"""Big inputs through shared memory, where the Triton server is on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

_log = structlog.get_logger("vtryon.triton")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_MOST_BYTES = 2 * 1024 * 1024 * 1024  # for one server
_SMALLEST_BYTES = 256 * 1024
_REST_SECONDS = 60.0
UNKNOWN_REGION = "Unable to find shared memory region"


class Regions:
    """Registered regions of shared memory, lent to one request after another.

    A server without access to this machine's memory (a container, a forwarded port) reports it when
    the first region is registered, and gets everything over the network from then on.

    Args:
        from_bytes: minimum total input bytes of a request that uses shared memory; 0 for none.
    """

    def __init__(self, client: triton.InferenceServerClient, url: str, from_bytes: int) -> None:
        self._client = client
        self._from_bytes = from_bytes if from_bytes and _is_here(url) else 0
        self._free: dict[int, list[SharedMemory]] = defaultdict(list)
        self._all: list[SharedMemory] = []

    @asynccontextmanager
    async def inputs(self, tensors: Mapping[str, np.ndarray]) -> AsyncIterator[list[Any]]:
        """Make a request's inputs; a leading 1 is put before every tensor's shape."""
        batched = {name: np.ascontiguousarray(one)[None] for name, one in tensors.items()}
        size = sum(one.nbytes for one in batched.values())
        if not self._from_bytes or size < self._from_bytes:
            yield [_by_wire(name, one) for name, one in batched.items()]
            return
        region = await self._take(size)
        if region is None:
            yield [_by_wire(name, one) for name, one in batched.items()]
            return
        try:
            yield await asyncio.to_thread(_by_region, region, batched)
        except InferenceServerException as error:
            if UNKNOWN_REGION in (error.message() or ""):
                self._drop_all()  # the server was started anew
            else:
                self._give_back(region)
            raise
        except BaseException:
            # Left: the server may read it later, so nobody writes to it for a while.
            asyncio.get_running_loop().call_later(_REST_SECONDS, self._give_back, region)
            raise
        self._give_back(region)

    async def close(self) -> None:
        """Take all regions back."""
        for region in self._all:
            with contextlib.suppress(InferenceServerException):
                await self._client.unregister_system_shared_memory(region.name, client_timeout=1.0)
        self._drop_all()

    def _give_back(self, region: SharedMemory) -> None:
        if region in self._all:
            self._free[region.size].append(region)

    def _drop_all(self) -> None:
        for region in self._all:
            _drop(region)
        self._all.clear()
        self._free.clear()

    async def _take(self, size: int) -> SharedMemory | None:
        """Take a free region of the next power of two, or register one; None where it can't be."""
        rounded = max(_SMALLEST_BYTES, 1 << (size - 1).bit_length())
        if self._free[rounded]:
            return self._free[rounded].pop()
        if rounded + sum(one.size for one in self._all) > _MOST_BYTES:
            return None
        try:
            region = _reserve(rounded)
        except OSError as error:
            _log.warning("no shared memory", bytes=rounded, reason=str(error))
            return None
        try:
            await self._client.register_system_shared_memory(region.name, region.name, region.size)
        except InferenceServerException as error:
            _drop(region)
            if (error.status() or "").endswith("UNAVAILABLE"):
                raise
            self._from_bytes = 0
            _log.info("the Triton server sees no memory of ours", reason=error.message())
            return None
        except BaseException:
            _drop(region)
            raise
        self._all.append(region)
        return region


def _reserve(size: int) -> SharedMemory:
    """Create a region with allocated pages: writing to a missing page would end the process."""
    region = SharedMemory(f"vtryon_{uuid.uuid4().hex[:16]}", create=True, size=size)
    try:
        with (_SHARED_MEMORY / region.name).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        _drop(region)
        raise
    return region


def _by_wire(name: str, batched: np.ndarray) -> Any:
    one = triton.InferInput(name, list(batched.shape), np_to_triton_dtype(batched.dtype))
    return one.set_data_from_numpy(batched)


def _by_region(region: SharedMemory, batched: Mapping[str, np.ndarray]) -> list[Any]:
    inputs, offset = [], 0
    for name, one in batched.items():
        np.ndarray(one.shape, one.dtype, region.buf, offset)[...] = one
        given = triton.InferInput(name, list(one.shape), np_to_triton_dtype(one.dtype))
        given.set_shared_memory(region.name, one.nbytes, offset)
        inputs.append(given)
        offset += one.nbytes
    return inputs


def _drop(region: SharedMemory) -> None:
    region.close()
    with contextlib.suppress(FileNotFoundError):
        region.unlink()


def _is_here(url: str) -> bool:
    host = url.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
