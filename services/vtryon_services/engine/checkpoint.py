"""A checkpoint: a folder in diffusers layout, safetensors only.

model_index.json  vae/  text_encoder/  tokenizer/  processor/  transformer/  scheduler/
geometry.json     sizes and preview map (optional)
digests.json      {"files": {path: sha256}}, checked where there is one
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from vtryon.errors import Reason, SettingsError
from vtryon_services.engine.geometry import Geometry
from vtryon_services.engine.placement import Placement

SHIPPED_CHECKPOINT = Path(__file__).parents[1] / "mannequin" / "checkpoint"
DIGESTS_FILE = "digests.json"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_CLASSES = {
    "vae": "AutoencoderKLQwenImage",
    "text_encoder": "Qwen2_5_VLForConditionalGeneration",
    "tokenizer": "Qwen2Tokenizer",
    "processor": "Qwen2VLProcessor",
    "transformer": "QwenImageTransformer2DModel",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}
M = TypeVar("M")

# What they would report is reported by our own errors.
for library in (diffusers_logging, transformers_logging):
    library.set_verbosity_error()
    library.disable_progress_bar()


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its layout was looked at, its weights not yet.

    Raises, everywhere:
        SettingsError: with one of the CHECKPOINT reasons; no message holds a path outside the
        checkpoint.
    """

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Look at the layout."""
        if not (folder / "model_index.json").is_file():
            raise SettingsError(
                f"no checkpoint in {folder.name or folder}: it has no model_index.json",
                reason=Reason.CHECKPOINT_NOT_FOUND,
            )
        return cls(folder)

    @cached_property
    def geometry(self) -> Geometry:
        """Sizes and preview map."""
        return Geometry.load(self.folder)

    def part(self, name: str) -> Path:
        """Give a part's folder; its class must be one that the engine computes."""
        listed = self._index.get(name)
        folder = self.folder / name
        if not listed or not folder.is_dir():
            raise SettingsError(
                f"the checkpoint has no {name}/", reason=Reason.CHECKPOINT_NOT_FOUND
            )
        if listed[-1] != _CLASSES[name]:
            raise SettingsError(
                f"{name} is a {listed[-1]}; the engine computes {_CLASSES[name]}",
                reason=Reason.CHECKPOINT_UNSUPPORTED,
            )
        return folder

    def load_model(self, name: str, model: type[M], placement: Placement) -> M:
        """Load a part with weights, whole: a missing tensor is an error, not a random one."""
        folder = self.part(name)
        self._check_weights(name, folder)
        try:
            loaded, info = model.from_pretrained(  # type: ignore[attr-defined]
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **{_dtype_argument(model): placement.dtype},
            )
        except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise _corrupt(f"{name} can't be loaded ({type(error).__name__})") from error
        missing = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
        if missing:
            raise _corrupt(f"{name} lacks {len(missing)} tensors, such as {missing[0]}")
        return loaded.eval().requires_grad_(False).to(placement.device)

    def digest(self, *names: str) -> str:
        """Give the sha256 that stands for the weights and configurations of some parts."""
        digest = hashlib.sha256()
        for name in sorted(names):
            for path in _files(self.folder / name):
                label = path.relative_to(self.folder).as_posix()
                digest.update(f"{label}:{self._file_digest(path)}\n".encode())
        return digest.hexdigest()

    @cached_property
    def _index(self) -> dict[str, Any]:
        return _read_json(self.folder / "model_index.json")

    @cached_property
    def _listed_digests(self) -> dict[str, str]:
        path = self.folder / DIGESTS_FILE
        return dict(_read_json(path).get("files", {})) if path.exists() else {}

    def _file_digest(self, path: Path) -> str:
        listed = self._listed_digests.get(path.relative_to(self.folder).as_posix())
        if listed:
            return listed
        if path.suffix == ".safetensors":  # its header names every tensor; the whole may be 40 GB
            return hashlib.sha256(_header(path) + str(path.stat().st_size).encode()).hexdigest()
        return sha256_of(path)

    def _check_weights(self, name: str, folder: Path) -> None:
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            pickles = [path.name for path in _files(folder) if path.suffix in _PICKLES]
            if pickles:
                raise SettingsError(
                    f"{name} has its weights in {pickles[0]}, a format that can run code; "
                    "only safetensors are loaded: convert it",
                    reason=Reason.CHECKPOINT_UNSAFE,
                )
            raise SettingsError(
                f"{name} has no safetensors file", reason=Reason.CHECKPOINT_NOT_FOUND
            )
        for path in weights:
            self._check_file(path)

    def _check_file(self, path: Path) -> None:
        label = path.relative_to(self.folder).as_posix()
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise _corrupt(f"{label} is no whole safetensors file") from error
        listed = self._listed_digests.get(label)
        if listed and sha256_of(path) != listed:
            raise _corrupt(f"{label} is not the file of {DIGESTS_FILE}: its sha256 differs")


def sha256_of(path: Path) -> str:
    """Digest a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_digests(folder: Path) -> None:
    """Write digests.json for all files of a checkpoint, itself and its card left out."""
    paths = [path for path in _files(folder) if path.name not in {DIGESTS_FILE, "README.md"}]
    files = {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}
    (folder / DIGESTS_FILE).write_text(json.dumps({"files": files}, indent=2) + "\n")


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(min(length, 64 * 1024 * 1024))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _corrupt(f"{path.name} is no JSON") from error
    if not isinstance(content, dict):
        raise _corrupt(f"{path.name} is no JSON object")
    return content


def _corrupt(message: str) -> SettingsError:
    return SettingsError(f"the checkpoint is damaged: {message}", reason=Reason.CHECKPOINT_CORRUPT)


def _dtype_argument(model: type) -> str:
    return "torch_dtype" if model.__module__.startswith("diffusers") else "dtype"
