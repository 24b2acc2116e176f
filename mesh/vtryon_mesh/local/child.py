"""Run a command that is terminated when its parent process ends, however that ends.

`python -I child.py COMMAND…` starts supervisord and each of its processes, because a parent that is
killed can't stop its children. On systems other than Linux the command runs unsupervised.
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
