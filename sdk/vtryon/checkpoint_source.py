"""Where a checkpoint is: in a folder, in ComfyUI's, or in a repository of a model hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode

from vtryon.errors import SettingsError

_HUB, _COMFYUI = "hf://", "comfyui:"
_CHOICES = ("transformer", "text_encoder", "vae", "tokenizer", "class_name", "zero_cond_t")
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


@dataclass(frozen=True, slots=True)
class ComfyFolder:
    """ComfyUI's `models` folder.

    Attributes:
        choices: part and file of those that are named, each part once; of `tokenizer` a folder or
            repository, of `class_name` a pipeline's class,
            of `zero_cond_t` true or false.
    """

    folder: Path
    choices: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        choices = urlencode(self.choices, safe="/:@", quote_via=quote)
        return f"{_COMFYUI}{self.folder}" + (f"?{choices}" if choices else "")


Source = Path | HubRepository | ComfyFolder
"""A folder in diffusers layout, a repository of a model hub, or ComfyUI's folder."""


def parse_source(text: str | Source) -> Source:
    """Read a checkpoint's source as users write it.

    A folder's path, hf://org/name[@revision], or comfyui:FOLDER[?transformer=NAME&vae=NAME…].

    Raises:
        SettingsError: no name follows hf://, comfyui: has unknown choices, or it is no text.
    """
    if isinstance(text, Path | HubRepository | ComfyFolder):
        return text
    if not isinstance(text, str):
        raise SettingsError(f"{text!r} is no checkpoint: a folder's path, or hf://org/name")
    if text.startswith(_COMFYUI):
        return _parse_comfyui(text)
    if not text.startswith(_HUB):
        return Path(text)
    found = _REPOSITORY.fullmatch(text.removeprefix(_HUB))
    if found is None:
        raise SettingsError(
            f"{text} names no repository: write hf://org/name, or hf://org/name@revision for a "
            "branch, a tag or a commit"
        )
    return HubRepository(found["name"], found["revision"])


def _parse_comfyui(text: str) -> ComfyFolder:
    folder, _, query = text.removeprefix(_COMFYUI).partition("?")
    choices = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)
    names = [name for name, _ in choices]
    whole = all(value for _, value in choices) and bool(choices) == bool(query)
    if not folder or not whole or len({*names}) < len(names) or {*names} - {*_CHOICES}:
        raise SettingsError(
            f"{text} is no folder of ComfyUI's: write comfyui:FOLDER, or comfyui:FOLDER?PART=NAME "
            f"with a name for some of {', '.join(_CHOICES)}, once each and joined by &"
        )
    return ComfyFolder(Path(folder), tuple(choices))


def looks_like_repository(path: Path) -> bool:
    """Whether a path could be the name of a hub's repository, written without hf://."""
    return _REPOSITORY.fullmatch(str(path)) is not None
