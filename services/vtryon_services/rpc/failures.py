"""Translation of exceptions in calls to VtryonErrors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from vtryon.errors import DeadlineError, StageError, VtryonError
from vtryon.wire.call_status import is_being_cancelled
from vtryon_services.rpc.call import Call

_log = structlog.get_logger("vtryon.service")


class ClientDisconnectedError(asyncio.CancelledError):
    """The client has closed the call."""


@contextmanager
def named_failures(stage: str, call: Call) -> Iterator[None]:
    """Translate exceptions into VtryonErrors; log unexpected ones.

    Raises:
        VtryonError: the original one, one for the deadline, or one for the stage.
    """
    try:
        yield
    except VtryonError:
        raise
    except TimeoutError:
        limit = call.timeout_seconds
        raise DeadlineError(f"out of time: the call was given {limit:.3g} s") from None
    except asyncio.CancelledError as error:
        if is_being_cancelled() or isinstance(error, ClientDisconnectedError):
            raise
        # Something that it waited for was cancelled, not the call.
        raise _log_failure(stage, call) from None
    except Exception:
        raise _log_failure(stage, call) from None


def _log_failure(stage: str, call: Call) -> StageError:
    _log.exception("the service failed", stage=str(stage))
    return StageError(f"{stage} failed; its log has the cause under request id {call.request_id}")
