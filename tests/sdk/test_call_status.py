"""How a call that was reset is told from one that was cancelled."""

import pytest

from vtryon.errors import DeadlineError, RunCancelledError, StageError
from vtryon.wire.call_status import CallStatus


class ResetCall:
    """A call of grpc.aio that the server has reset.

    A real server does so in the instant between its deadline and the client's: under load, in about
    one of 200 calls with a deadline of 1 µs.
    """

    def add_done_callback(self, callback: object) -> None:
        """It has ended before anybody listens."""

    def cancelled(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("remaining_seconds", "error"),
    [(0.0, DeadlineError), (2.0, RunCancelledError), (None, RunCancelledError)],
)
async def test_a_reset_is_a_deadline_where_no_time_is_left(remaining_seconds, error) -> None:
    status = CallStatus()
    status.watch(ResetCall(), remaining_seconds)
    assert type(status.cancellation()) is error


async def test_what_failed_in_sending_comes_first() -> None:
    status = CallStatus()
    status.watch(ResetCall(), 0.0)
    status.send_error = OSError("gone")
    assert type(status.cancellation()) is StageError
