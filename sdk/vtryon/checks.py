"""The checks of `vtryon doctor`: findings, and the entry points that contribute them.

A package adds checks by an entry point of the group `vtryon.checks`: a function that yields
findings of the same finders that its commands use, so that both always agree.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import NamedTuple

from vtryon import extras


class Finding(NamedTuple):
    """Result of one check.

    Attributes:
        name: of the checked item.
        ok: whether it exists and is usable.
        found: its version, location or state; the problem if not ok.
        needed: whether vtryon depends on it for its main function.
        remedy: how to correct the problem.
    """

    name: str
    ok: bool
    found: str
    needed: bool = False
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything; a check that fails is a finding, never an exception."""
    found = [*_system(), *_extras()]
    for entry in sorted(entry_points(group="vtryon.checks"), key=lambda entry: entry.name):
        try:
            checks: Iterable[Finding] = entry.load()()
            found += checks
        except ModuleNotFoundError as error:
            lacking = f"needs {error.name}"
            found.append(Finding(entry.name, False, lacking, remedy=_remedy(entry.name)))
        except Exception as error:
            found.append(Finding(entry.name, False, f"the check failed: {error}"))
    return found


def _system() -> Iterator[Finding]:
    enough = sys.version_info >= (3, 11)
    yield Finding("python", enough, platform.python_version(), True, "needs 3.11 or newer")
    for name in ("vtryon", "grpcio", "protobuf"):
        yield Finding(name, True, _version(name) or "from source", True)


def _extras() -> Iterator[Finding]:
    for extra in extras.all_extras():
        absent = extras.absent_packages(extra)
        versions = (f"{name} {_version(name)}" for name in extras.packages(extra))
        found = f"missing {', '.join(absent)}" if absent else ", ".join(versions)
        yield Finding(f"extra {extra}", not absent, found, remedy=extras.install_command([extra]))


def _remedy(name: str) -> str:
    return extras.install_command(["mesh" if name == "mesh" else "server"])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
