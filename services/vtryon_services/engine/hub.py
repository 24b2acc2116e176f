"""Checkpoints of a model hub: downloaded into the hub client's own cache, or found there."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import structlog

from vtryon import extras
from vtryon.checkpoint_source import HubRepository, Source
from vtryon.errors import SettingsError
from vtryon_services.engine import layout
from vtryon_services.engine.refusals import not_found

_lock = threading.Lock()
_found: dict[HubRepository, Path] = {}
_log = structlog.get_logger("vtryon.checkpoint")


def find_folder(source: Source) -> Path:
    """Give the folder of a checkpoint, its layout checked, before the import of torch.

    Raises:
        SettingsError: there is no checkpoint, or it has unused files.
    """
    folder = snapshot(source) if isinstance(source, HubRepository) else source
    layout.check_root(folder)
    return folder


def snapshot(repository: HubRepository) -> Path:
    """Give the folder of a repository's snapshot; download missing files, once per process.

    Only files that a checkpoint uses are downloaded. Cache, resumption, credentials and offline
    mode are the client's: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT.

    Raises:
        SettingsError: no such repository or revision, no access, not cached while offline, or the
        client is not installed.
    """
    with _lock:
        if repository not in _found:
            _log.info("looking for a checkpoint", source=str(repository))
            _found[repository] = _download(repository)
        return _found[repository]


def cached(repository: HubRepository) -> bool:
    """Whether a whole snapshot is in the cache, without asking the hub.

    Raises:
        SettingsError: the client is not installed.
    """
    try:
        _download(repository, local_files_only=True)
    except SettingsError as error:
        if error.reason is None:  # none of a checkpoint's
            raise
        return False
    return True


def _download(repository: HubRepository, **options: Any) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise SettingsError(
            f"{repository} needs the package huggingface_hub, which is not installed: "
            f"{extras.install_command(['server'])}"
        ) from error
    try:
        folder = snapshot_download(
            repository.name,
            revision=repository.revision,
            allow_patterns=layout.used_patterns(),
            **options,
        )
    # Subclasses come before their bases.
    except errors.GatedRepoError as error:
        raise not_found(
            f"{repository} is gated: accept its terms on its page, then log in by `hf auth login`, "
            "or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise not_found(
            f"{repository} is not on the hub, or is private: correct the name, or log in by "
            "`hf auth login`, or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise not_found(
            f"{repository}: the repository has no such revision; name one of its branches, tags "
            "or commits"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise not_found(
            f"{repository} is not whole in the hub's cache, and the hub can't be reached: unset "
            f"HF_HUB_OFFLINE, or run `hf download {repository.name}` where there is a network"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise not_found(f"{repository} can't be downloaded ({reason})") from error
    return _checked(repository, Path(folder))


def _checked(repository: HubRepository, folder: Path) -> Path:
    if not (folder / "model_index.json").is_file():
        raise not_found(
            f"{repository} has no model_index.json: name a repository in diffusers layout that "
            "holds all parts"
        )
    return folder
