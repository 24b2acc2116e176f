"""For tests of programs that use vtryon.

`InProcess` answers by functions of the test, in place of a server; the bare SDK has it:

    async with vtryon.Client(transport=vtryon.testing.InProcess(try_on=dress)) as client:
        result = await client.try_on("person.png", "garment.png")

`scripted_mesh` starts the real services without a model, from the extra `server`:

    async with vtryon.testing.scripted_mesh() as target, vtryon.Client(target) as client:
        result = await client.try_on("person.png", "garment.png")

Equal requests give equal pictures, of one grey; any bytes are taken for a picture. Everything else
is real: the wire, the grammar, the limits, queueing, deadlines, cancelling, errors.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from vtryon.embedded import embedded_mesh
from vtryon.testing.in_process import CreateJobCall, InProcess, TryOnCall

__all__ = ["CreateJobCall", "InProcess", "TryOnCall", "scripted_mesh"]


def scripted_mesh(
    *, step_seconds: float = 0.0, **settings: Any
) -> AbstractAsyncContextManager[str]:
    """Start the mesh on the scripted backend; yields the target for `vtryon.Client`.

    Args:
        step_seconds: duration of a denoise step, and of each other stage.
        settings: of the services, such as `max_concurrency` or `max_waiting`, to provoke queueing
            or rejection.

    Raises:
        SettingsError: the extra `server` is not installed.
    """
    return embedded_mesh(backend="scripted", scripted_seconds=step_seconds, **settings)
