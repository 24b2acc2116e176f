"""Extras of the package that each command needs, and which of them are missing.

The only module with this table. The content of an extra is read from the metadata of the installed
package, so that commands and services are listed here, and packages are not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

from vtryon.catalog import CATALOG, KAFKA
from vtryon.errors import SettingsError
from vtryon.types import Stage

PACKAGE = "vtryon"
_NAMED = 5
# Longest match first: "kafka registry" before "kafka".
COMMANDS: dict[str, tuple[str, ...]] = {
    "try-on": ("cli",),
    "batch": ("cli",),
    "stage": ("cli",),
    "jobs": ("cli",),
    "workflow": ("cli",),
    "doctor": ("cli",),
    "serve": ("base",),
    "example-pair": ("server",),
    "contact-sheet": ("cli",),
    "mannequin": ("server",),
    "models": ("server",),
    "models check": ("server", "triton"),
    "models export-onnx": ("onnx",),
    "models export-triton": ("server", "triton"),
    "triton": ("server", "triton"),
    "kafka": ("kafka",),
    "kafka broker": ("broker",),
    "kafka registry": ("broker",),
    "dlq": ("kafka",),
    "up": ("mesh",),
    "mesh": ("mesh",),
}
_BACKENDS = {"torch": ("server",), "triton": ("server", "triton"), "scripted": ("base",)}
# Without --endpoint, these start the services inside the command.
_EMBEDDED = ("try-on", "batch", "stage")
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\s*(?:\[(?P<extras>[^\]]*)\])?[^;]*"
    r"(?:;.*?extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"])?"
)


def needed(words: Sequence[str]) -> tuple[str, ...]:
    """Name the extras that a command line needs, such as `["serve", "rest"]`."""
    plain = [word for word in words if not word.startswith("-")]
    known = [one for one in COMMANDS if plain[: len(one.split())] == one.split()]
    if not known:
        return ("cli",)
    command = max(known, key=len)
    extras = set(COMMANDS[command])
    if command == "serve":
        extras.update(of_services(plain[1:], backend_of(words)))
    elif command == "up" and "--kafka" in words:
        extras.update(("broker", CATALOG[KAFKA].extra))
    elif command in _EMBEDDED and not any(word.startswith("--endpoint") for word in words):
        extras.update(of_services(["all"], None))
    return tuple(sorted(extras))


def of_services(words: Iterable[str], backend: str | None = None) -> set[str]:
    """Return the extras of the services named in a command line.

    Args:
        words: words of the command line; services and `all` count, the rest is ignored.
        backend: backend of all stages; without it, each stage's variables decide.
    """
    named = {name for word in words for name in (Stage if word == "all" else [word])}
    known = named & {*CATALOG}
    return {extra for name in known for extra in of_service(name, backend or _set_backend(name))}


def _set_backend(service: str) -> str | None:
    """Read a service's backend as its settings do: from its own variable, or the shared one."""
    own = f"VTRYON_{service.upper().replace('-', '_')}_BACKEND"
    return os.environ.get(own) or os.environ.get("VTRYON_BACKEND")


def of_service(name: str, backend: str | None = None) -> tuple[str, ...]:
    """Return the extras that a service needs, by its name in `vtryon serve`.

    Args:
        name: as in the catalogue.
        backend: backend of a stage: `torch` (the default), `triton` or `scripted`.
    """
    if name in CATALOG and (extra := CATALOG[name].extra):
        return (extra,)
    return _BACKENDS.get(backend or "torch", ("server",))


def backend_of(words: Sequence[str]) -> str | None:
    """Find the backend on a command line."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == "--backend":
            return value if equals else following
    return None


def missing(extras: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Give the packages that are not installed, by extra; complete extras are left out.

    Without metadata of the package itself (its source on PYTHONPATH) nothing is missing.
    """
    found = {extra: absent_packages(extra) for extra in extras}
    return {extra: names for extra, names in found.items() if names}


def require(what: str, extras: Iterable[str]) -> None:
    """Check that all packages of some extras are installed.

    Args:
        what: subject of the error message, such as "`vtryon serve rest`".
        extras: of this package.

    Raises:
        SettingsError: packages are missing; names them, and the command that installs them.
    """
    if absent := missing(extras):
        names = sorted({name for names in absent.values() for name in names})
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise SettingsError(
            f"{what} needs packages that are not installed ({', '.join(names[:_NAMED])}{more}): "
            f"{install_command(absent)}"
        )


def install_command(extras: Iterable[str]) -> str:
    """Give the command that installs some extras."""
    return f"pip install '{PACKAGE}[{','.join(sorted(extras))}]'"


@cache
def absent_packages(extra: str) -> tuple[str, ...]:
    """Name the packages of an extra, and those that their own extras add, that are missing."""
    return tuple(sorted(set(_absent(PACKAGE, extra, set()))))


@cache
def packages(extra: str) -> tuple[str, ...]:
    """Name the packages that an extra adds to the bare install."""
    return tuple(sorted({name for name, _ in _requirements(PACKAGE, extra)}))


def all_extras() -> tuple[str, ...]:
    """Name the extras of the installed package."""
    try:
        return tuple(distribution(PACKAGE).metadata.get_all("Provides-Extra") or ())
    except PackageNotFoundError:
        return ()


def _absent(package: str, extra: str, seen: set[tuple[str, str]]) -> Iterator[str]:
    if (package, extra) in seen:
        return
    seen.add((package, extra))
    for name, nested in _requirements(package, extra):
        if not _is_installed(name):
            yield name
            continue
        for one in nested:
            yield from _absent(name, one, seen)


def _requirements(package: str, extra: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Give name and extras of each requirement that an extra adds to a package."""
    try:
        lines = distribution(package).requires or []
    except PackageNotFoundError:
        return
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match and match["extra"] == extra and "python_version <" not in line:
            nested = tuple(one.strip() for one in (match["extras"] or "").split(",") if one.strip())
            yield match["name"], nested


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
