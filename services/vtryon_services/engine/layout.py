"""Files of a checkpoint: used, known to have no effect, or rejected.

A file that is neither used nor known to have no effect is rejected by its name: it may be meant to
change the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from vtryon.checkpoint_source import looks_like_repository
from vtryon.errors import SettingsError
from vtryon_services.engine.refusals import not_found, unsafe, unsupported

_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_MODEL = ("config.json", "*.safetensors", "*.safetensors.index.json")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
PART_FILES: Mapping[str, tuple[str, ...]] = {
    "vae": _MODEL,
    "text_encoder": _MODEL,
    "tokenizer": _TOKENIZER,
    "processor": ("preprocessor_config.json", "processor_config.json"),
    "transformer": _MODEL,
    "scheduler": ("scheduler_config.json",),
}
ROOT_FILES = ("model_index.json", "geometry.json", "digests.json")
# Pattern: why such a file changes no result.
_HARMLESS_ANYWHERE = {
    "._*": "what macOS keeps beside a file on other disks",
    ".DS_Store": "of macOS's file manager",
    ".localized": "of macOS's file manager",
    "__MACOSX": "what macOS keeps beside files in an archive",
    "Thumbs.db": "of Windows's file manager",
    "desktop.ini": "of Windows's file manager",
    ".directory": "of KDE's file manager",
    ".git*": "of git",
    ".lfsconfig": "of git",
    ".cache": "of the hub's client",
    ".huggingface": "of the hub's client",
    ".locks": "of the hub's client",
    ".no_exist": "of the hub's client",
    ".msc": "of ModelScope's client",
    ".mdl": "of ModelScope's client",
    ".mv": "of ModelScope's client",
    ".ipynb_checkpoints": "of notebooks",
    ".nfs*": "a deleted file that is still open",
    "README*": "a card",
    "*.md": "a card",
    "LICENSE*": "terms of use",
    "NOTICE*": "terms of use",
    "*.png": "an example",
    "*.jpg": "an example",
    "*.jpeg": "an example",
    "*.webp": "an example",
    "*.py": "code is never run; the classes are those of the libraries",
}
_HARMLESS_IN_PART = {
    "text_encoder": {
        "generation_config.json": "no text is generated",
        "chat_template*": "the prompt's template is the engine's own",
    },
    "tokenizer": {"chat_template*": "the prompt's template is the engine's own"},
    "processor": {
        "chat_template*": "the prompt's template is the engine's own",
        "video_preprocessor_config.json": "no videos are taken",
        **dict.fromkeys(_TOKENIZER, "compared with tokenizer/, which is the one that is used"),
    },
}


def check_root(folder: Path) -> None:
    """Check the folder of a checkpoint, before reading anything in it.

    Raises:
        SettingsError: it is not a checkpoint, or has unused files.
    """
    if not folder.is_dir():
        raise _no_folder(folder)
    if not (folder / "model_index.json").is_file():
        raise _no_index(folder)
    for path in sorted(folder.iterdir()):
        if is_harmless(path.name):
            continue
        known = path.name in PART_FILES if path.is_dir() else path.name in ROOT_FILES
        if not known:
            raise refuse_file(path, path.name + "/" * path.is_dir())
        if not path.is_dir():
            _check_regular(path, path.name)


def check_part(part: str, folder: Path) -> None:
    """Look at the files of a part.

    Raises:
        SettingsError: one of them would be passed over.
    """
    for path in sorted(folder.iterdir()):
        if is_harmless(path.name, part):
            continue
        if path.is_dir() or not _is_used(part, path.name):
            raise refuse_file(path, f"{part}/{path.name}")
        _check_regular(path, f"{part}/{path.name}")


def used_patterns() -> list[str]:
    """Give patterns of all files that a checkpoint may use, by their paths in it."""
    return [*ROOT_FILES, *(f"{part}/{one}" for part, names in PART_FILES.items() for one in names)]


def used_files(part: str, folder: Path) -> Iterator[Path]:
    """Give the files of a part that decide a result, in the order of their names."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and _is_used(part, path.name):
            yield path


def _check_regular(path: Path, label: str) -> None:
    if path.is_symlink() and not path.exists():
        raise not_found(f"{label} is a link to a file that is not there: download it again")
    if not path.is_file():
        raise unsupported(f"{label} is a pipe or a device: put a regular file in its place")


def is_harmless(name: str, part: str | None = None) -> bool:
    """Whether a file of this name is known to change no result."""
    patterns = [*_HARMLESS_ANYWHERE, *_HARMLESS_IN_PART.get(part or "", ())]
    return any(fnmatch(name, pattern) for pattern in patterns)


def _is_used(part: str, name: str) -> bool:
    if name.startswith("."):
        return False
    return any(fnmatch(name, pattern) for pattern in PART_FILES[part])


def refuse_file(path: Path, label: str) -> SettingsError:
    """Make the error for a file that nothing would use; `label` is its name in the checkpoint."""
    if path.suffix in _PICKLES:
        return unsafe(
            f"{label} is in a format that can run code; only safetensors are loaded: "
            "convert it to safetensors, or move it out of the checkpoint"
        )
    if path.suffix == ".gguf":
        return unsupported(
            f"{label} is a GGUF file, which is not loaded: take the model's safetensors in "
            "diffusers layout, or convert it"
        )
    if "lora" in path.name.lower() or path.name == "adapter_config.json":
        return unsupported(
            f"{label} looks like a LoRA, which would not be applied: merge it into the weights "
            "(fuse_lora of diffusers), or move it out of the checkpoint"
        )
    return unsupported(
        f"{label} is not a file that is used here, and would be passed over: "
        "move it out of the checkpoint"
    )


def _no_folder(path: Path) -> SettingsError:
    if path.is_file():
        if path.suffix in _PICKLES or path.suffix == ".gguf":
            return refuse_file(path, path.name)
        kind = "ComfyUI's or another single file" if path.suffix == ".safetensors" else "a file"
        return unsupported(
            f"{path.name} is {kind}; a checkpoint is a folder in diffusers layout, with "
            "model_index.json, transformer/, text_encoder/, vae/ and so on: name that folder, or "
            "ComfyUI's by comfyui:FOLDER"
        )
    if looks_like_repository(path):
        return not_found(
            f"no checkpoint in {path.name}: there is no folder {path} here. A repository of a "
            f"model hub is named hf://{path}"
        )
    return not_found(f"no checkpoint in {path.name or path}: there is no such folder")


def _no_index(folder: Path) -> SettingsError:
    name = folder.name or str(folder)
    start = f"no checkpoint in {name}: it has no model_index.json"
    if snapshots := sorted((folder / "snapshots").glob("*/model_index.json")):
        return not_found(f"{start}; name its snapshots/{snapshots[-1].parent.name}")
    if any((folder / one).is_dir() for one in ("diffusion_models", "text_encoders", "unet")):
        return not_found(f"{start}. ComfyUI's folder is named comfyui:{name}")
    if models := sorted(path.name for path in folder.glob("*") if path.suffix == ".gguf"):
        return unsupported(f"{start}; {models[0]} is a GGUF file, which is not loaded")
    if models := sorted(path.name for path in folder.rglob("*.safetensors")):
        return not_found(
            f"{start}. {models[0]} alone is not enough (a single file, a LoRA or one part): "
            "name the folder in diffusers layout that holds all parts"
        )
    return not_found(start)
