"""The seam below a client: its connection, as an object with the methods of `grpc.aio.Channel`."""

from __future__ import annotations

from typing import Protocol

import grpc

from vtryon.errors import SettingsError


class Transport(Protocol):
    """Opens the connection of a client, in place of its own to a target.

    `vtryon.testing.InProcess` is one. Another is a class whose `open` returns a channel of grpc.aio
    with interceptors or other channel options.
    """

    def open(self) -> grpc.aio.Channel:
        """Return a new connection; called in the event loop of the client, which closes it.

        A client uses `unary_unary`, `unary_stream`, `stream_unary`, `stream_stream`, `get_state`,
        `wait_for_state_change` and `close`. Of the calls it uses `cancel`, `cancelled`, `code`,
        `details`, `trailing_metadata`, `add_done_callback` and the messages.
        """


def check_transport(transport: Transport, **replaced: object) -> None:
    """Check a transport, and that no parameter is set which it replaces.

    Raises:
        SettingsError: it has no method `open`, or a parameter is set.
    """
    if not callable(getattr(transport, "open", None)):
        kind = type(transport).__name__
        raise SettingsError(f"transport: takes an object with a method `open`, not {kind}")
    for name, value in replaced.items():
        if value is not None:
            raise SettingsError(
                f"{name}: has no effect with a transport, which opens its own connection"
            )
