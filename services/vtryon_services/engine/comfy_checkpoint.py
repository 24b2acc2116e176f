"""A checkpoint of ComfyUI's files: one for each part with weights, and a tokenizer's folder.

They have no configurations: `shapes` reads them from the tensors, `published` has the rest.
Names of tensors are those of diffusers or ComfyUI's, of which each is used or refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from transformers import Qwen2Tokenizer

from vtryon.checkpoint_source import ComfyFolder
from vtryon_services.engine import float8, layout, published, shapes
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.comfyui import ComfyFiles, find_files
from vtryon_services.engine.configs import Config, read_config
from vtryon_services.engine.families.family import Family
from vtryon_services.engine.families.table import find_family
from vtryon_services.engine.geometry import Geometry
from vtryon_services.engine.headers import Stored
from vtryon_services.engine.refusals import corrupt, library_errors, unsupported
from vtryon_services.engine.weights import ZERO_COND_MARKER, Weights

_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_FIRST, _PLUS = "QwenImageEditPipeline", "QwenImageEditPlusPipeline"
_NAMED_PLUS = re.compile(r"(?<!\d)(2509|2511)(?!\d)")
_MARKERS = {float8.MARKER, ZERO_COND_MARKER}
_TOKENS = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
_TOKENS |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}


@dataclass(frozen=True)
class ComfyCheckpoint(Checkpoint):
    """ComfyUI's files as a checkpoint; `folder` is its `models`."""

    source: ComfyFolder
    files: ComfyFiles

    @classmethod
    def of(cls, source: ComfyFolder) -> ComfyCheckpoint:
        """Find the files, and check the headers of all weights."""
        checkpoint = cls(source.folder, source, find_files(source))
        find_family(checkpoint._pipeline)
        checkpoint._check_time()
        return checkpoint

    @property
    def location(self) -> str:
        """The source with the files that were found, and absolute paths."""
        named = {name: str(path) for name, path in self._chosen().items()}
        return str(ComfyFolder(self.folder.resolve(), tuple(named.items())))

    @cached_property
    def family(self) -> Family:
        """The family of its transformer, with the published sizes and without a preview map."""
        return find_family(self._pipeline)(Geometry())

    @property
    def _zero_cond_t(self) -> bool | None:
        """Whether references are modulated at time zero, as the source says; None if it does not.

        Raises:
            SettingsError: it is neither true nor false.
        """
        chosen = dict(self.source.choices).get("zero_cond_t")
        if chosen not in {None, "true", "false"}:
            raise unsupported(f"zero_cond_t={chosen}: takes true or false")
        return None if chosen is None else chosen == "true"

    def _check_time(self) -> None:
        """Refuse a file whose name says 2511 and whose tensors do not."""
        name, marked = self.files.transformer.name, self._is_marked
        found = _NAMED_PLUS.search(name)
        if found and found[1] == "2511" and not marked and self._zero_cond_t is None:
            raise unsupported(
                f"{name} says 2511, and has no tensor {ZERO_COND_MARKER}, by which ComfyUI's files "
                "of that model are known: add zero_cond_t=true if it is one, else "
                "zero_cond_t=false, as in comfyui:FOLDER?zero_cond_t=true"
            )
        if marked and self._pipeline == _FIRST:
            raise unsupported(
                f"{name} has the tensor {ZERO_COND_MARKER} of the 2511 model: take out "
                f"class_name={_FIRST}"
            )

    @property
    def _is_marked(self) -> bool:
        return ZERO_COND_MARKER in self._weights["transformer"].tensors

    @property
    def _pipeline(self) -> str:
        """The pipeline's class, which no tensor tells but the marker of the 2511 model.

        Raises:
            SettingsError: neither the source nor the file's name says which model it is.
        """
        named = dict(self.source.choices).get("class_name")
        if named is not None:
            return named
        name = self.files.transformer.name
        if self._is_marked or _NAMED_PLUS.search(name):
            return _PLUS
        raise unsupported(
            f"{name} does not say which edit model it is, and its tensors are those of several: "
            f"add class_name={_PLUS} for 2509 and 2511, or "
            f"class_name={_FIRST} for the first one, as in comfyui:FOLDER?class_name=…"
        )

    def part(self, name: str) -> Path:
        """Give the tokenizer's folder, for the processor too, which has no other tokenizer."""
        if name not in {"tokenizer", "processor"}:
            raise corrupt(f"{name} has no folder")
        return self.files.tokenizer

    def config(self, name: str) -> Config:
        """Give a part's configuration: from shapes, or the published model's."""
        if name == "tokenizer":
            return read_config(name, self.files.tokenizer)
        if name == "processor":
            return dict(published.PROCESSOR)
        if name == "scheduler":
            return dict(published.SCHEDULER)
        tensors = self._weights[name].tensors
        if name == "transformer":
            chosen = {} if self._zero_cond_t is None else {"zero_cond_t": self._zero_cond_t}
            return {**shapes.transformer_config(tensors), **chosen}
        if name == "vae":
            return shapes.vae_config(tensors)
        return shapes.text_config(tensors, self._tokens)

    def weights(self, name: str) -> Weights:
        """Give a part's tensors, named as diffusers and transformers name them."""
        return self._weights[name]

    @cached_property
    def _weights(self) -> dict[str, Weights]:
        files = {
            "transformer": self.files.transformer,
            "text_encoder": self.files.text_encoder,
            "vae": self.files.vae,
        }
        rename = {"transformer": without_prefix, "vae": vae_names}
        return {
            name: Weights.of_files(name, [path], rename.get(name, dict))
            for name, path in files.items()
        }

    @cached_property
    def _tokens(self) -> dict[str, int]:
        with library_errors("tokenizer"):
            tokenizer = Qwen2Tokenizer.from_pretrained(self.files.tokenizer, local_files_only=True)
            return {name: tokenizer.convert_tokens_to_ids(one) for name, one in _TOKENS.items()}

    def _used(self, name: str) -> Iterator[tuple[str, Path]]:
        if name == "tokenizer":
            for path in layout.used_files(name, self.files.tokenizer):
                yield f"{name}/{path.name}", path
        elif name in self._weights:
            for path in self._weights[name].files:
                yield f"{name}/{path.name}", path

    def _settings(self, name: str) -> str:
        """Give a part's derived configuration, which decides results as its files do."""
        return "" if name == "tokenizer" else json.dumps(self.config(name), sort_keys=True)

    def _chosen(self) -> Mapping[str, Path | str]:
        found: dict[str, Any] = {}
        for name in ("transformer", "text_encoder", "vae"):
            path: Path = getattr(self.files, name)
            # Below the folder of its kind: diffusion_models/NAME.
            found[name] = Path(*path.relative_to(self.folder).parts[1:]).as_posix()
        tokenizer = self.files.tokenizer.resolve()
        if self._zero_cond_t is not None:
            found["zero_cond_t"] = str(self._zero_cond_t).lower()
        return {**found, "tokenizer": tokenizer, "class_name": self.family.pipeline}


def without_prefix(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Take ComfyUI's prefix off the transformer's names, where all have it."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) or name in _MARKERS for name in tensors):
            return {name.removeprefix(prefix): stored for name, stored in tensors.items()}
    return dict(tensors)


def vae_names(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Name the VAE's tensors as diffusers does, by its own table.

    Raises:
        SettingsError: two tensors have one name.
    """
    with library_errors("vae"):
        named: dict[str, Stored] = convert_wan_vae_to_diffusers(dict(tensors))
    if len(named) != len(tensors):
        raise corrupt("vae has two names of a tensor")
    return named
