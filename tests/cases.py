"""Run a folder of fault scripts against this tree: `python -m tests.cases FOLDER [WORDS]`.

Each script is `FOLDER/NAME/case.py`, takes the tree from VTRYON, prints what it saw in its last
line and exits with 0 where the behaviour is right.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Run the scripts one after another; exit 1 where one found a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.cases", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("words", nargs="*", help="only scripts whose name contains one of these")
    parser.add_argument("--seconds", type=float, default=400, help="limit for one script")
    given = parser.parse_args()
    scripts = sorted(given.folder.resolve().glob("*/case.py"))
    if not scripts:
        sys.stdout.write(f"no scripts in {given.folder}: nothing was run\n")
        return 0
    words = given.words or [""]
    chosen = [one for one in scripts if any(word in one.parent.name for word in words)]
    wrong = [one.parent.name for one in chosen if not _run(one, given.seconds)]
    sys.stdout.write(f"{len(chosen) - len(wrong)} of {len(chosen)} right\n")
    for name in wrong:
        sys.stdout.write(f"  wrong: {name}\n")
    return int(bool(wrong))


def _run(script: Path, seconds: float) -> bool:
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "VTRYON": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        said += f"no end in {seconds:.0f} s"
    last = said.strip().splitlines()[-1] if said.strip() else "it said nothing"
    mark = "right" if process.returncode == 0 else "WRONG"
    took = time.monotonic() - began
    sys.stdout.write(f"{mark} {script.parent.name} ({took:.0f} s): {last[:300]}\n")
    sys.stdout.flush()
    return process.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
