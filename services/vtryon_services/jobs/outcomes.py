"""Outcomes on the wire, for bridges."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from vtryon.catalog import JOBS
from vtryon.jobs.outbox import TakenOutcomes, TakeOutcomes
from vtryon.v1 import outcome_pb2
from vtryon_services.jobs.notifier import OUTCOMES, Notifier
from vtryon_services.jobs.outbox import JobOutbox
from vtryon_services.jobs.settings import JobsSettings
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.call import Call, Incoming
from vtryon_services.rpc.method import Method, Replies
from vtryon_services.validation.ranges import field_error

_MOST, _LONGEST_WAIT_SECONDS, _LONGEST_OWNER = 1000, 30.0, 64
_LAST_ID = 2**63 - 1


def outcome_service(outbox: JobOutbox, notifier: Notifier, settings: JobsSettings) -> Service:
    """Serve `OutcomeService`."""

    async def take(
        asked: TakeOutcomes, _incoming: Incoming, _call: Call
    ) -> AsyncGenerator[TakenOutcomes, None]:
        _check(asked)
        until = time.monotonic() + asked.wait_seconds
        published = asked.published
        with notifier.subscribe(OUTCOMES) as subscription:
            while True:
                taken = await outbox.take(asked.owner, published, asked.max_outcomes)
                published, left = (), until - time.monotonic()
                if taken or not asked.max_outcomes or left <= 0:
                    break
                await subscription.wait(min(settings.poll_seconds, left))
        yield TakenOutcomes(tuple(taken))

    method = Method(
        "TakeOutcomes",
        outcome_pb2.TakeOutcomesRequest,
        TakeOutcomes,
        take,
        streams_requests=False,
        replies=Replies.ONE,
        ends_at_drain=True,
    )
    return Service(JOBS, "vtryon.v1.OutcomeService", (method,), settings)


def _check(asked: TakeOutcomes) -> None:
    if not 1 <= len(asked.owner) <= _LONGEST_OWNER:
        raise field_error("owner", f"takes 1 to {_LONGEST_OWNER} characters")
    if asked.max_outcomes > _MOST:
        raise field_error("max_outcomes", f"takes at most {_MOST}")
    if len(asked.published) > _MOST or any(one > _LAST_ID for one in asked.published):
        raise field_error("published", f"takes at most {_MOST} ids, each at most {_LAST_ID}")
    if not 0 <= asked.wait_seconds <= _LONGEST_WAIT_SECONDS:
        raise field_error("wait_seconds", f"takes 0 to {_LONGEST_WAIT_SECONDS:g}")
