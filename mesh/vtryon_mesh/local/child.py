"""Run a command that is told to end when the process that started it ends, however that ends.

`python -I child.py COMMAND…`: supervisord and each of its processes are started so, for a parent
that is killed can stop nobody. On other systems than Linux the command just runs.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>; kept by execve


def main() -> None:
    """Ask for SIGTERM at the parent's end, and become the command."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the parent has ended")
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606


if __name__ == "__main__":
    main()
