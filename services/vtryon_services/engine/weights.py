"""The tensors of a part: its safetensors files, checked before anything is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn

from vtryon.errors import SettingsError
from vtryon_services.engine.layout import is_harmless, refuse_file
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.refusals import corrupt, few, library_errors, not_found, unsupported

M = TypeVar("M", bound=nn.Module)
# What ComfyUI's file of the 2511 model holds in place of `zero_cond_t` in a configuration.
ZERO_COND_MARKER = "__index_timestep_zero__"
_FLOATS = {"F16", "BF16", "F32", "F64"}
_LORA = re.compile(r"lora_|\.lora\.|lokr_|hada_|\.diff_b$|\.alpha$")
_SCALES = re.compile(r"scale_weight|weight_scale|scale_input|input_scale|scaled_fp8|comfy_quant")
_QUANTISED = re.compile(r"\.absmax$|quant_map|bitsandbytes|\.qweight$|\.qzeros$")
_COMFY = ("model.diffusion_model.", "first_stage_model.", "conditioner.")
_STEMS = {"vae": "diffusion_pytorch_model", "transformer": "diffusion_pytorch_model"}


class Stored(NamedTuple):
    """A tensor in a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """A part's tensors, by name; their headers are read, their data is not."""

    part: str
    tensors: Mapping[str, Stored]

    @classmethod
    def find(cls, part: str, folder: Path) -> Weights:
        """Read the headers of a part's weights, and reject unsupported ones.

        Raises:
            SettingsError: files are missing, duplicated or damaged, or have tensors other than
                plain floating-point weights.
        """
        tensors: dict[str, Stored] = {}
        for path in _files(part, folder):
            own = _read_header(f"{part}/{path.name}", path)
            if doubled := sorted(own.keys() & tensors.keys()):
                raise corrupt(f"{part} has {few(doubled)} in two files")
            tensors.update(own)
        index = _index(part, folder)
        if index.is_file():
            mapped = _weight_map(part, index).items()
            lost = [name for name, file in mapped if _file_of(tensors, name) != file]
            if lost:
                raise corrupt(
                    f"{part} lacks {few(sorted(lost))} where {index.name} lists them: "
                    "download it again"
                )
        for name, stored in tensors.items():
            _check_tensor(f"{part}/{stored.file.name}", name, stored.dtype)
        return cls(part, tensors)

    @property
    def files(self) -> list[Path]:
        """The files, in the order of their names."""
        return sorted({stored.file for stored in self.tensors.values()})

    @property
    def names(self) -> set[str]:
        """The weights' names, without the marker that stands for a setting."""
        return self.tensors.keys() - {ZERO_COND_MARKER}

    def load(
        self,
        model: type[M],
        config: Mapping[str, Any],
        placement: Placement,
        keep: Collection[str] = (),
    ) -> M:
        """Create a diffusers model with these weights, each read once, onto its device.

        Args:
            model: its class.
            config: of the class; its fields have been checked.
            placement: device and element type.
            keep: the child modules to load; all by default.

        Raises:
            SettingsError: names or shapes differ from the configured model's.
        """
        with library_errors(self.part), init_empty_weights():
            made: M = model.from_config(dict(config))  # type: ignore[attr-defined]
        shapes = {name: tuple(one.shape) for name, one in made.state_dict().items()}
        self.check_names(shapes.keys() - self.names, self.names - shapes.keys())
        self._check_shapes(shapes)
        for name, _ in list(made.named_children()):
            if keep and name not in keep:
                setattr(made, name, nn.Identity())
        with library_errors(self.part):
            made.load_state_dict(self._read(made.state_dict(), placement), assign=True)
            return made.eval().requires_grad_(False).to(placement.device)

    def check_names(self, missing: Iterable[str], unexpected: Iterable[str]) -> None:
        """Reject weights whose names differ from the model's.

        Raises:
            SettingsError: names the keys.
        """
        lacking, others = sorted(missing), sorted(unexpected)
        if others:
            raise unsupported(
                f"{self.part} has {len(others)} tensors that its configuration's model does not "
                f"have, and that would be passed over: {few(others)}. Correct the number of layers "
                f"in {self.part}/config.json, or take weights without them"
            )
        if lacking:
            raise corrupt(f"{self.part} lacks {len(lacking)} tensors, such as {lacking[0]}")

    def _check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name in sorted(self.names):
            if self.tensors[name].shape != shapes[name]:
                raise corrupt(
                    f"{self.part}: {name} has the shape {self.tensors[name].shape}; the "
                    f"configuration's model has {shapes[name]}"
                )

    def _read(self, wanted: Collection[str], placement: Placement) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        own = placement.device.type == "cpu"  # not a view of the file, which may be replaced
        for path in self.files:
            with safe_open(path, framework="pt", device=str(placement.device)) as file:
                for name in file.keys():  # noqa: SIM118
                    if name in wanted:
                        found[name] = file.get_tensor(name).to(placement.dtype, copy=own)
        return found


def _files(part: str, folder: Path) -> list[Path]:
    """Give the files that hold a part's weights: one, or those of an index."""
    paths = [path for path in sorted(folder.iterdir()) if not is_harmless(path.name, part)]
    there = {path.name: path for path in paths if path.suffix == ".safetensors"}
    stem = _STEMS.get(part, "model")
    index = _index(part, folder)
    single = there.get(f"{stem}.safetensors")
    if single is not None and index.is_file():
        raise unsupported(f"{part} has its weights twice: in {single.name} and by {index.name}")
    if index.is_file():
        chosen = _listed(part, index, there)
    elif single is not None:
        chosen = [single]
    else:
        raise _no_weights(part, stem, sorted(there))
    for name, path in there.items():
        if path not in chosen:
            raise _not_chosen(part, name, path)
    for other in paths:
        if other.name.endswith(".index.json") and other != index:
            raise refuse_file(other, f"{part}/{other.name}")
    return chosen


def _index(part: str, folder: Path) -> Path:
    return folder / f"{_STEMS.get(part, 'model')}.safetensors.index.json"


def _weight_map(part: str, index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_bytes())["weight_map"]
        return {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise corrupt(f"{part}/{index.name} is no index of weights") from error


def _file_of(tensors: Mapping[str, Stored], name: str) -> str | None:
    return tensors[name].file.name if name in tensors else None


def _listed(part: str, index: Path, there: Mapping[str, Path]) -> list[Path]:
    names = set(_weight_map(part, index).values())
    if missing := sorted(names - there.keys()):
        raise not_found(f"{part} lacks {few(missing)}, which {index.name} lists: download it again")
    return [there[name] for name in sorted(names)]


def _no_weights(part: str, stem: str, others: list[str]) -> SettingsError:
    for name in others:
        variant = name.removeprefix(f"{stem}.").removesuffix(".safetensors").partition("-0")[0]
        if name.startswith(f"{stem}.") and variant:
            return unsupported(
                f"{part} has weights of the variant {variant} alone ({name}): take {variant} out "
                "of the names of its files, in their index too"
            )
    if others:
        return not_found(
            f"{part} has no {stem}.safetensors and no {stem}.safetensors.index.json; "
            f"{few(others)} would not be used"
        )
    return not_found(f"{part} has no safetensors file: it is to have {stem}.safetensors")


def _not_chosen(part: str, name: str, path: Path) -> SettingsError:
    label = f"{part}/{name}"
    if any(_LORA.search(key) for key in _read_header(label, path)):
        return unsupported(
            f"{label} is a LoRA, which would not be applied: merge it into the weights "
            "(fuse_lora of diffusers), or move it out of the checkpoint"
        )
    return refuse_file(path, label)


def _read_header(label: str, path: Path) -> dict[str, Stored]:
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: Stored(path, part.get_dtype(), tuple(part.get_shape()))
                for name, part in parts.items()
            }
    except (SafetensorError, OSError) as error:
        raise corrupt(f"{label} is no whole safetensors file") from error


def _check_tensor(label: str, name: str, dtype: str) -> None:
    if name == ZERO_COND_MARKER:
        return
    if name.startswith(_COMFY):
        raise unsupported(
            f"{label} has names of a single file of ComfyUI's ({name}): take the model in "
            "diffusers layout"
        )
    if _LORA.search(name):
        raise unsupported(
            f"{label} holds a LoRA ({name}), which would not be applied: merge it into the weights"
        )
    if dtype.startswith("F8") or _SCALES.search(name):
        raise unsupported(
            f"{label} holds scaled or 8-bit floating-point weights ({name}, {dtype}), whose "
            "scales would not be applied: convert it to bf16, or take the bf16 weights"
        )
    if dtype not in _FLOATS or _QUANTISED.search(name):
        raise unsupported(
            f"{label} holds quantised weights ({name}, {dtype}), which are not computed with: "
            "dequantise it to bf16, or take the bf16 weights"
        )
