"""What goes wrong in a call, by one of our names."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from vtryon.errors import DeadlineError, StageError, VtryonError
from vtryon.outcome import is_being_cancelled
from vtryon_services.runtime.call import Call

_log = structlog.get_logger("vtryon.service")


class CallerLeftError(asyncio.CancelledError):
    """There is nobody to write to."""


@contextmanager
def named_failures(stage: str, call: Call) -> Iterator[None]:
    """Give what goes wrong in a call one of our names, and log what is no caller's business.

    Raises:
        VtryonError: as it was, of the deadline, or of the stage.
    """
    try:
        yield
    except VtryonError:
        raise
    except TimeoutError:
        limit = call.timeout_seconds
        raise DeadlineError(f"out of time: the call was given {limit:.3g} s") from None
    except asyncio.CancelledError as error:
        if is_being_cancelled() or isinstance(error, CallerLeftError):
            raise
        # Something that it waited for was cancelled, not the call.
        raise _log_failure(stage, call) from None
    except Exception:
        raise _log_failure(stage, call) from None


def _log_failure(stage: str, call: Call) -> StageError:
    _log.exception("the service failed", stage=str(stage))
    return StageError(f"{stage} failed; its log has the cause under request id {call.request_id}")
