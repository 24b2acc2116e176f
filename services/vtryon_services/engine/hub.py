"""Checkpoints of a model hub: downloaded into the hub client's own cache, or found there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from vtryon import extras
from vtryon.checkpoint_source import HubRepository
from vtryon.errors import SettingsError
from vtryon_services.engine import layout
from vtryon_services.engine.refusals import not_found

_lock = threading.Lock()
_found: dict[tuple[HubRepository, str], Path] = {}
_log = structlog.get_logger("vtryon.checkpoint")


def snapshot(repository: HubRepository) -> Path:
    """Give the folder of a repository's snapshot; download missing files, once per process.

    Only files that a checkpoint uses are downloaded. Cache, resumption, credentials and offline
    mode are the client's: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT.

    Raises:
        SettingsError: no such repository or revision, no access, not cached while offline, or the
        client is not installed.
    """
    return _once(repository, "checkpoint", _download)


def cached(repository: HubRepository) -> Path | None:
    """Find a whole snapshot in the cache, without asking the hub.

    Raises:
        SettingsError: the client is not installed.
    """
    try:
        return _download(repository, local_files_only=True)
    except SettingsError as error:
        if error.reason is None:  # none of a checkpoint's
            raise
        return None


def tokenizer(repository: HubRepository) -> Path:
    """Give the folder of a repository's tokenizer, and download that alone.

    Raises:
        SettingsError: as for `snapshot`.
    """
    patterns = [f"tokenizer/{name}" for name in layout.PART_FILES["tokenizer"]]
    return _once(repository, "tokenizer", lambda one: _fetch(one, patterns)) / "tokenizer"


def _once(repository: HubRepository, kind: str, download: Callable[[HubRepository], Path]) -> Path:
    with _lock:
        if (repository, kind) not in _found:
            _log.info(f"looking for a {kind}", source=str(repository))
            _found[repository, kind] = download(repository)
        return _found[repository, kind]


def _download(repository: HubRepository, **options: Any) -> Path:
    return _checked(repository, _fetch(repository, layout.used_patterns(), **options))


def _fetch(repository: HubRepository, patterns: list[str], **options: Any) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise SettingsError(
            f"{repository} needs the package huggingface_hub, which is not installed: "
            f"{extras.install_command(['server'])}"
        ) from error
    try:
        folder = snapshot_download(
            repository.name,
            revision=repository.revision,
            allow_patterns=patterns,
            **options,
        )
    except Exception as error:  # of several HTTP clients, too
        raise not_found(f"{repository} {_why(repository, error)}") from error
    return Path(folder)


def _why(repository: HubRepository, error: Exception) -> str:
    """Say why a repository is not to be had; subclasses come before their bases."""
    from huggingface_hub import errors

    log_in = "log in by `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"is gated: accept its terms on its page, then {log_in}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"is not on the hub, or is private: correct the name, or {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "has no such revision: name one of its branches, tags or commits"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            "is not whole in the hub's cache, and the hub can't be reached: unset HF_HUB_OFFLINE, "
            f"or run `hf download {repository.name}` where there is a network"
        )
    _log.warning("a download failed", source=str(repository), exc_info=error)
    words = error.strerror if isinstance(error, OSError) else None
    return f"can't be downloaded ({words or type(error).__name__}): the log has the cause"


def _checked(repository: HubRepository, folder: Path) -> Path:
    if not (folder / "model_index.json").is_file():
        raise not_found(
            f"{repository} has no model_index.json: name a repository in diffusers layout that "
            "holds all parts"
        )
    for part in _parts(folder / "model_index.json"):
        if not (folder / part).is_dir():
            raise not_found(
                f"{repository} is not whole in the hub's cache: it lacks {part}/. Unset "
                f"HF_HUB_OFFLINE, or run `hf download {repository.name}`"
            )
    return folder


def _parts(index: Path) -> list[str]:
    """List the parts that an index has; a broken one is refused where it is opened."""
    try:
        listed = json.loads(index.read_bytes())
        return [part for part in layout.PART_FILES if any(listed.get(part) or ())]
    except (OSError, ValueError, AttributeError, TypeError):
        return []
