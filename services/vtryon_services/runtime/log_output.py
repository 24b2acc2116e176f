"""Log lines on their way out: writing one never fails, blocks or slows a call."""

from __future__ import annotations

import queue
import threading
from typing import TextIO

from opentelemetry import metrics

_dropped = metrics.get_meter("vtryon").create_counter(
    "vtryon.logs.dropped", description="Log lines that could not be written, by why."
)
_MAX_LINES = 10_000
_END = None


class LogOutput:
    """Writes lines to a stream in a separate thread.

    A line is dropped and counted if the stream has no reader any more, if its disk is full, or if
    more than 10000 lines are queued because the reader is slow.

    Args:
        stream: the destination.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(_MAX_LINES)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def msg(self, message: str) -> None:
        """Take a line; never raises."""
        try:
            self._lines.put_nowait(message)
        except queue.Full:
            _dropped.add(1, {"why": "queue full"})

    # structlog calls the method that is named like the level.
    debug = info = warning = warn = error = critical = exception = fatal = log = msg

    def __call__(self, *_: object) -> LogOutput:
        """Serve as structlog's factory of loggers: there is but one."""
        return self

    def close(self, seconds: float = 1.0) -> None:
        """Write queued lines, for at most this many seconds."""
        try:
            self._lines.put(_END, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _run(self) -> None:
        while (line := self._lines.get()) is not _END:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                _dropped.add(1, {"why": "not written"})
