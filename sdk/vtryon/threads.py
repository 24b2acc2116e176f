"""Work on bytes outside the event loop, if there are enough of them to be worth a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_SHORT_BYTES = 256 * 1024  # hashed in less time than a thread takes to answer


async def run_on_bytes(size: float, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Call a function that handles `size` bytes: in a thread where they are many, else here."""
    if size <= _SHORT_BYTES:
        return work(*args, **named)
    return await asyncio.to_thread(work, *args, **named)
