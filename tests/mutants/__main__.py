"""Break one important line at a time, and see that a test notices: `python -m tests.mutants`.

Each row of the tables beside this file names a line, what it is broken into, and the test that must
fail then:

    [[mutant]]
    why = "the last steps + 1 sigmas are those that run"
    file = "services/vtryon_services/engine/schedule.py"
    line = "return sigmas[-(steps + 1):]"       # occurs once in the file
    broken = "return sigmas[-steps:]"
    test = "tests/services/engine/test_schedule.py::test_denoise_runs_the_last_steps"

The tree is copied first and stays as it is. All the tests must pass on the copy; then each must
fail when its line is broken. `escapes = "reason"` in place of `test` lists a line that no test
catches, and why.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TREE = ("sdk", "services", "mesh", "loadtests", "protos", "tests", "helm", "docs")
FILES = (
    "pyproject.toml",
    "README.md",
    "constraints.txt",
    "compose.yaml",
    "CHANGELOG.md",
    "LICENSE",
)
_PASSED, _FAILED = 0, 1
_SECONDS = 300


@dataclass(frozen=True)
class Mutant:
    """A line, how it is broken, and the test that catches it."""

    why: str
    file: str
    line: str
    broken: str
    test: str = ""
    escapes: str = ""


def read_tables() -> list[Mutant]:
    """Read every table, in order of their names."""
    rows: list[Mutant] = []
    for path in sorted(Path(__file__).parent.glob("*.toml")):
        rows += [Mutant(**row) for row in tomllib.loads(path.read_text())["mutant"]]
    return rows


def problems(mutants: list[Mutant]) -> Iterator[str]:
    """Say what of the tables does not fit the tree: a line that is not there once, a lost test."""
    for one in mutants:
        found = (ROOT / one.file).read_text().count(one.line) if (ROOT / one.file).exists() else 0
        if found != 1:
            yield f"{one.file}: {one.line!r} occurs {found} times, and must once"
        if bool(one.test) == bool(one.escapes):
            yield f"{one.why}: give either a test or why none catches it"
        path, *_, name = one.test.partition("[")[0].split("::")
        if one.test and f"def {name}(" not in (ROOT / path).read_text():
            yield f"{one.test} is no test"


def main() -> int:
    """Break the chosen lines; exit 1 where one is not caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only rows that contain all of these words")
    given = parser.parse_args()
    mutants = [one for one in read_tables() if all(word in repr(one) for word in given.words)]
    if lines := list(problems(mutants)):
        sys.stderr.write("\n".join(lines) + "\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        copy = _copy(Path(scratch))
        tests = sorted({one.test for one in mutants if one.test})
        sys.stdout.write(f"{len(mutants)} lines, {len(tests)} tests; first as it is\n")
        if _test(copy, *tests, seconds=_SECONDS * max(1, len(tests) // 4)) != _PASSED:
            sys.stderr.write("some of these tests fail on the tree as it is: run them first\n")
            return 2
        outcomes = [_outcome(one, copy) for one in mutants]
    caught = outcomes.count("caught")
    explained = outcomes.count("explained")
    sys.stdout.write(f"{caught} of {len(mutants)} caught, {explained} explained\n")
    return int(caught + explained < len(mutants))


def _outcome(mutant: Mutant, copy: Path) -> str:
    if mutant.escapes:
        outcome = "explained"
    else:
        path = copy / mutant.file
        whole = path.read_text()
        path.write_text(whole.replace(mutant.line, mutant.broken))
        code = _test(copy, mutant.test)
        outcome = {_FAILED: "caught", _PASSED: "ESCAPED"}.get(code, f"pytest ended with {code}:")
        path.write_text(whole)
    sys.stdout.write(f"{outcome:<9} {mutant.file}: {mutant.why}\n")
    sys.stdout.flush()
    return outcome


def _test(copy: Path, *tests: str, seconds: float = _SECONDS) -> int:
    path = os.pathsep.join(str(copy / part) for part in TREE[:4])
    command = (sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests)
    try:
        return subprocess.run(
            command,
            cwd=copy,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            timeout=seconds,
        ).returncode
    except subprocess.TimeoutExpired:
        return _FAILED


def _copy(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in TREE:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    if (ROOT / ".triton").exists():
        (folder / ".triton").symlink_to((ROOT / ".triton").resolve())
    return folder


if __name__ == "__main__":
    sys.exit(main())
