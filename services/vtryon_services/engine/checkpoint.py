"""A checkpoint: a folder in diffusers layout, safetensors only.

model_index.json  vae/  text_encoder/  tokenizer/  processor/  transformer/  scheduler/
geometry.json     sizes and preview map (optional)
digests.json      {"files": {path: sha256}}; weights that it lists are checked

Every file, every field of a configuration and every tensor is used, known to change nothing, or
refused by its name: see `layout`, `configs` and `weights`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import structlog
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from vtryon.checkpoint_source import ComfyFolder, HubRepository, Source
from vtryon.types import Stage
from vtryon_services.engine import layout
from vtryon_services.engine.configs import Config, read_config, read_json
from vtryon_services.engine.content import content_digest, sha256_of
from vtryon_services.engine.families.family import Family
from vtryon_services.engine.families.table import find_family
from vtryon_services.engine.geometry import Geometry
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.refusals import corrupt, library_errors, not_found, unsupported
from vtryon_services.engine.sources import find_folder
from vtryon_services.engine.weights import Weights

SHIPPED_CHECKPOINT = Path(__file__).parents[1] / "mannequin" / "checkpoint"
DIGESTS_FILE = "digests.json"
_WITH_WEIGHTS = ("transformer", "text_encoder", "vae")
# What each stage computes with.
STAGE_PARTS: Mapping[Stage, tuple[str, ...]] = {
    Stage.LATENT_ENCODER: ("vae",),
    Stage.TEXT_ENCODER: ("processor", "text_encoder", "tokenizer"),
    Stage.SAMPLING: ("scheduler", "transformer"),
    Stage.DECODING: ("vae",),
}
_CLASSES = {
    "vae": ("AutoencoderKLQwenImage",),
    "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
    "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
    "processor": ("Qwen2VLProcessor", "Qwen2_5_VLProcessor"),
    "transformer": ("QwenImageTransformer2DModel",),
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
}
_INDEX_FIELDS = {"_class_name", "_diffusers_version", "_name_or_path", *_CLASSES}
_DIGESTS_AT_ONCE = 4
_log = structlog.get_logger("vtryon.checkpoint")
M = TypeVar("M", bound=nn.Module)

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
    source: Source

    @classmethod
    def open(cls, source: Source) -> Checkpoint:
        """Check the layout, the model class in the index, and the headers of all weights.

        A repository of a model hub is downloaded first. A missing part is rejected when it is
        loaded: a stage needs only its own parts.
        """
        if isinstance(source, ComfyFolder):
            from vtryon_services.engine.comfy_checkpoint import ComfyCheckpoint  # stands on this

            return ComfyCheckpoint.of(source)
        folder = find_folder(source)
        checkpoint = cls(folder, source)
        checkpoint._check_index()
        for name in _WITH_WEIGHTS:
            if (folder / name).is_dir() and checkpoint._index.get(name):
                Weights.find(name, checkpoint.part(name))
        return checkpoint

    @property
    def location(self) -> str:
        """The source as another process can open it: an absolute path, or a hub's commit."""
        if isinstance(self.source, HubRepository):
            return str(HubRepository(self.source.name, self.folder.name))
        return str(self.folder.resolve())

    @cached_property
    def family(self) -> Family:
        """All that is particular to its model."""
        return find_family(self._index.get("_class_name"))(Geometry.load(self.folder))

    @property
    def geometry(self) -> Geometry:
        """Sizes, defaults and preview map."""
        return self.family.geometry

    def part(self, name: str) -> Path:
        """Give a part's folder: its class is one that the engine computes, its files are known."""
        listed = self._index.get(name)
        folder = self.folder / name
        if not listed or not folder.is_dir():
            raise not_found(f"the checkpoint has no {name}/")
        if listed[-1] not in _CLASSES[name]:
            raise unsupported(
                f"{name} is a {listed[-1]}; the engine computes {' and '.join(_CLASSES[name])}"
            )
        layout.check_part(name, folder)
        return folder

    def config(self, name: str) -> Config:
        """Give a part's configuration, every field of it known."""
        return read_config(name, self.part(name))

    def weights(self, name: str) -> Weights:
        """Give a part's tensors, those that digests.json lists compared with it."""
        weights = Weights.find(name, self.part(name))
        self._check_digests(name)
        return weights

    def load_model(
        self, name: str, model: type[M], placement: Placement, keep: Collection[str] = ()
    ) -> M:
        """Load a part of diffusers, whole or some of its children; see `Weights.load`."""
        config = self.config(name)

        def build() -> M:
            made: M = model.from_config(config)  # type: ignore[attr-defined]
            return made

        return self.weights(name).load(build, placement, keep)

    def digest(self, stage: Stage) -> str:
        """Return the sha256 of everything that affects a stage's results, by content.

        It covers weights, configurations, tokenizer, geometry and the model's family.
        """
        digest = hashlib.sha256(self.geometry.model_dump_json().encode())
        digest.update(f"{self.family.pipeline}\n".encode())
        used = [one for name in STAGE_PARTS[stage] for one in self._used(name)]
        for name in STAGE_PARTS[stage]:
            digest.update(self._settings(name).encode())
        with ThreadPoolExecutor(_DIGESTS_AT_ONCE) as pool, library_errors("the checkpoint"):
            digests = pool.map(content_digest, [path for _, path in used])
            for (label, _), own in zip(used, digests, strict=True):
                digest.update(f"{label}:{own}\n".encode())
        return digest.hexdigest()

    def _used(self, name: str) -> Iterator[tuple[str, Path]]:
        """Give label and path of a part's files that decide a result."""
        for path in layout.used_files(name, self.folder / name):
            yield self._label(path), path

    def _settings(self, _name: str) -> str:
        """Give settings of a part that are in none of its files."""
        return ""

    @cached_property
    def _index(self) -> dict[str, Any]:
        return read_json(self.folder / "model_index.json", "model_index.json")

    def _check_index(self) -> None:
        find_family(self._index.get("_class_name"))
        for name, listed in self._index.items():
            if name.startswith("_"):
                known = name in _INDEX_FIELDS
            elif not isinstance(listed, list) or not listed:
                raise corrupt(f"model_index.json: {name} is no list of library and class")
            else:
                known = name in _INDEX_FIELDS or not any(listed)
            if not known:
                raise unsupported(
                    f"model_index.json has {name} ({listed}), which would be passed over: "
                    "take it out if the model does not need it"
                )

    @cached_property
    def _listed_digests(self) -> dict[str, str]:
        path = self.folder / DIGESTS_FILE
        if not path.exists():
            return {}
        listed = read_json(path, DIGESTS_FILE).get("files")
        if not isinstance(listed, dict):
            raise corrupt(f'{DIGESTS_FILE} has no "files"')
        return listed

    def _check_digests(self, name: str) -> None:
        """Compare a part with digests.json: reject other weights, log other settings."""
        for path in layout.used_files(name, self.folder / name):
            label = self._label(path)
            listed = self._listed_digests.get(label)
            if not listed or content_digest(path) == listed:
                continue
            if path.suffix == ".safetensors":
                raise corrupt(f"{label} is not the file of {DIGESTS_FILE}: its sha256 differs")
            _log.warning("a file differs from digests.json", file=label)

    def _label(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def write_digests(folder: Path) -> None:
    """Write digests.json for all files of a checkpoint, itself and its card left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in paths
        if path.name not in {DIGESTS_FILE, "README.md"}
    }
    (folder / DIGESTS_FILE).write_text(json.dumps({"files": files}, indent=2) + "\n")
