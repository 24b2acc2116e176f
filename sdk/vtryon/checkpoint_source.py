"""Where a checkpoint is: in a folder, or in a repository of a model hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vtryon.errors import SettingsError

_HUB = "hf://"
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_REPOSITORY = re.compile(rf"(?P<name>{_NAME}/{_NAME})(?:@(?P<revision>[A-Za-z0-9_][\w./-]*))?")


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository of a model hub.

    Attributes:
        name: `org/name`.
        revision: branch, tag or commit; None: the main branch.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{_HUB}{self.name}" + (f"@{self.revision}" if self.revision else "")


Source = Path | HubRepository
"""A folder, or a repository of a model hub."""


def parse_source(text: str | Source) -> Source:
    """Read a checkpoint's source as users write it: a folder's path, or hf://org/name[@revision].

    Raises:
        SettingsError: it starts with hf:// and is no name of a repository, or is no text at all.
    """
    if isinstance(text, Path | HubRepository):
        return text
    if not isinstance(text, str):
        raise SettingsError(f"{text!r} is no checkpoint: a folder's path, or hf://org/name")
    if not text.startswith(_HUB):
        return Path(text)
    found = _REPOSITORY.fullmatch(text.removeprefix(_HUB))
    if found is None:
        raise SettingsError(
            f"{text} names no repository: write hf://org/name, or hf://org/name@revision for a "
            "branch, a tag or a commit"
        )
    return HubRepository(found["name"], found["revision"])


def looks_like_repository(path: Path) -> bool:
    """Whether a path could be the name of a hub's repository, written without hf://."""
    return _REPOSITORY.fullmatch(str(path)) is not None
