"""`vtryon serve`, killed at a named point: `python -m tests.support.dies POINT ...`.

At the n-th time that the point is reached, the process is gone at once, as by SIGKILL.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from aiokafka import AIOKafkaConsumer

from vtryon.jobs import Jobs
from vtryon.jobs.outbox import Outcomes
from vtryon_services.bridges.kafka.schemas import Codec
from vtryon_services.bridges.kafka.sender import Sender
from vtryon_services.jobs.erasures import Erasures
from vtryon_services.jobs.leases import Leases
from vtryon_services.jobs.store import JobStore
from vtryon_services.storage.artifacts import Artifacts

# Where the process dies: behind a call, or before it.
JOBS = {
    "created": (JobStore, "create", "behind"),
    "leased": (Leases, "lease", "behind"),
    "steps told": (Leases, "record", "behind"),
    "resume point kept": (Leases, "keep_resume", "behind"),
    "picture kept": (Leases, "finish", "before"),
    "finished": (Leases, "finish", "behind"),
}
ERASING = {
    "marked": (JobStore, "erase", "behind"),
    "deleted": (Erasures, "confirm", "before"),
    "confirmed": (Erasures, "confirm", "behind"),
}
MAKING = {
    "folder noted": (Erasures, "expect", "behind"),
    "picture stored": (Artifacts, "put", "behind"),
    "not named yet": (JobStore, "create", "before"),
}
BRIDGE = {
    "request read": (Codec, "decode", "behind"),
    "job made": (Jobs, "create", "behind"),
    "offset committed": (AIOKafkaConsumer, "commit", "behind"),
    "outcomes taken": (Outcomes, "take", "behind"),
    "picture fetched": (Jobs, "picture", "behind"),
    "published": (Sender, "send", "behind"),
}
POINTS = {**JOBS, **ERASING, **MAKING, **BRIDGE}


def arrange(point: str, times: int) -> None:
    """Have the process die when it reaches the point so many times."""
    owner, name, when = POINTS[point]
    original: Any = getattr(owner, name)
    reached = 0

    async def deadly(*arguments: Any, **options: Any) -> Any:
        nonlocal reached
        if when == "behind":
            result = await original(*arguments, **options)
            if name in {"lease", "take"} and not result:
                return result
            if name == "send" and not arguments[1]:
                return result
        reached += 1
        if reached == times:
            os.kill(os.getpid(), 9)
        return result if when == "behind" else await original(*arguments, **options)

    setattr(owner, name, deadly)


if __name__ == "__main__":
    arrange(sys.argv[1], int(sys.argv[2]))
    sys.argv = ["vtryon", *sys.argv[3:]]
    from vtryon.cli import main

    main()
