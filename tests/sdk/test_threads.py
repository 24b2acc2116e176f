"""Few bytes are handled on the event loop, many in a thread."""

from __future__ import annotations

import threading

import pytest

from vtryon.threads import run_on_bytes


@pytest.mark.parametrize(("size", "here"), [(0, True), (1000, True), (10**7, False)])
async def test_where_work_runs(size: int, here: bool) -> None:
    thread = await run_on_bytes(size, threading.get_ident)
    assert (thread == threading.get_ident()) == here


async def test_an_error_of_the_work_is_raised() -> None:
    for size in (0, 10**7):
        with pytest.raises(ZeroDivisionError):
            await run_on_bytes(size, divmod, 1, 0)
