"""What `vtryon doctor` looks at: findings, and what the packages of this distribution contribute.

A package adds its checks by an entry point of the group `vtryon.checks`: a function that gives
findings by the very finders that its commands use, so that the two never disagree.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import NamedTuple

from vtryon import extras


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        ok: whether it is there and can be used.
        found: its version, place or state; where it is not ok, what is wrong.
        needed: whether vtryon can't do its main job without it.
        remedy: what to do where it is not ok.
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
