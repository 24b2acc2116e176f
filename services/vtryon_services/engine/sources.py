"""A checkpoint's source, looked at before the import of torch, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from vtryon.checkpoint_source import ComfyFolder, HubRepository, Source
from vtryon_services.engine import comfyui, hub, layout


def check_source(source: Source) -> None:
    """Look for a checkpoint: download a repository of a hub, find ComfyUI's files.

    Raises:
        SettingsError: there is no checkpoint, or it has unused files.
    """
    if isinstance(source, ComfyFolder):
        comfyui.find_files(source)
    else:
        find_folder(source)


def find_folder(source: Path | HubRepository) -> Path:
    """Give the folder of a checkpoint in diffusers layout, which is checked.

    Raises:
        SettingsError: there is no checkpoint, or it has unused files.
    """
    folder = hub.snapshot(source) if isinstance(source, HubRepository) else source
    layout.check_root(folder)
    return folder
