"""The tensors of a part: its safetensors files, checked before anything is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn

from vtryon.errors import SettingsError
from vtryon_services.engine import float8
from vtryon_services.engine.headers import Stored, read_header
from vtryon_services.engine.layout import is_harmless, refuse_file
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.refusals import corrupt, few, library_errors, not_found, unsupported

M = TypeVar("M", bound=nn.Module)
# What ComfyUI's file of the 2511 model holds in place of `zero_cond_t` in a configuration.
ZERO_COND_MARKER = "__index_timestep_zero__"
_FLOATS = {"F16", "BF16", "F32", "F64"}
_LORA = re.compile(r"lora_|\.lora\.|lokr_|hada_|\.diff_b$|\.alpha$")
_QUANTISED = re.compile(
    r"\.absmax$|quant_map|bitsandbytes|\.qweight$|\.qzeros$|weight_scale|pre_quant_scale|scaled_fp8"
)
# As transformers 4 named the text encoder's tensors.
_OLDER = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), "model.language_model."),
)
_LOGITS = "lm_head.weight"
_COMFY = ("model.diffusion_model.", "first_stage_model.", "conditioner.")
_STEMS = {"vae": "diffusion_pytorch_model", "transformer": "diffusion_pytorch_model"}


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
            own = read_header(f"{part}/{path.name}", path)
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
        return cls._of(part, tensors)

    @classmethod
    def of_files(
        cls,
        part: str,
        paths: Iterable[Path],
        rename: Callable[[Mapping[str, Stored]], dict[str, Stored]],
    ) -> Weights:
        """Read the headers of a part's files, whose tensors are renamed.

        Raises:
            SettingsError: they are damaged, or have tensors other than floating-point weights.
        """
        tensors: dict[str, Stored] = {}
        for path in paths:
            tensors |= read_header(f"{part}/{path.name}", path)
        return cls._of(part, rename(tensors))

    @classmethod
    def _of(cls, part: str, tensors: Mapping[str, Stored]) -> Weights:
        scaled = float8.attach_scales(part, tensors)
        for name, stored in scaled.items():
            _check_tensor(f"{part}/{stored.file.name}", name, stored.dtype)
        return cls(part, _renamed(scaled) if part == "text_encoder" else scaled)

    @property
    def files(self) -> list[Path]:
        """The files, in the order of their names."""
        return sorted({stored.file for stored in self.tensors.values()})

    @property
    def names(self) -> set[str]:
        """The weights' names, without the marker that stands for a setting."""
        return self.tensors.keys() - {ZERO_COND_MARKER}

    @property
    def is_float8(self) -> bool:
        """Whether some are stored in fp8."""
        return any(stored.dtype in float8.FLOAT8 for stored in self.tensors.values())

    def load(
        self,
        build: Callable[[], M],
        placement: Placement,
        keep: Collection[str] = (),
    ) -> M:
        """Create a model with these weights, each read once, onto its device.

        Args:
            build: creates the model, of a configuration whose fields have been checked.
            placement: device and element type, and whether fp8 stays fp8 in memory.
            keep: the child modules to load; all by default.

        Raises:
            SettingsError: names or shapes differ from the configured model's.
        """
        with library_errors(self.part), init_empty_weights():
            made = build()
        shapes = {name: tuple(one.shape) for name, one in made.state_dict().items()}
        self.check_names(shapes.keys() - self.names, self.names - shapes.keys())
        self._check_shapes(shapes)
        for name, _ in list(made.named_children()):
            if keep and name not in keep:
                setattr(made, name, nn.Identity())
        if placement.keep_fp8:
            float8.keep_(made, self.tensors)
        with library_errors(self.part):
            wanted = made.state_dict()
            made.load_state_dict(self._read(wanted, placement), assign=True)
            del wanted
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
        one, scales = torch.ones((), device=placement.device), self._scales(wanted, placement)
        for path in self.files:
            with safe_open(path, framework="pt", device=str(placement.device)) as file:
                for name, stored in self.tensors.items():
                    if stored.file != path or name not in wanted:
                        continue
                    tensor = file.get_tensor(stored.key)
                    if stored.dtype not in float8.FLOAT8:
                        found[name] = tensor.to(placement.dtype, copy=own)
                        continue
                    scale = scales.get(name, one).clone()
                    kept = f"{name.removesuffix('.weight')}.scale"
                    if kept in wanted:
                        found[name], found[kept] = tensor.clone(), scale
                    else:
                        found[name] = float8.dequantise(tensor, scale, placement.dtype)
        return found

    def _scales(self, wanted: Collection[str], placement: Placement) -> dict[str, torch.Tensor]:
        scaled = [(name, one, one.scale) for name, one in self.tensors.items() if name in wanted]
        found = {}
        for path in {scale.file for _, _, scale in scaled if scale}:
            with safe_open(path, framework="pt", device=str(placement.device)) as file:
                for name, stored, scale in scaled:
                    if scale and scale.file == path:
                        values = file.get_tensor(scale.key)
                        found[name] = float8.spread(values, len(stored.shape))
        return found


def _renamed(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Name the text encoder's tensors as its model does, without those of the logits.

    Raises:
        SettingsError: two tensors have one name.
    """
    found: dict[str, Stored] = {}
    for key, stored in tensors.items():
        name = key
        for older, newer in _OLDER:
            name = older.sub(newer, name)
        own = name.removeprefix("model.")
        if own in found:
            raise corrupt(f"text_encoder has {key} and {found[own].key}, two names of a tensor")
        if name != _LOGITS:  # never computed
            found[own] = stored
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
    if any(_LORA.search(key) for key in read_header(label, path)):
        return unsupported(
            f"{label} is a LoRA, which would not be applied: merge it into the weights "
            "(fuse_lora of diffusers), or move it out of the checkpoint"
        )
    return refuse_file(path, label)


def _check_tensor(label: str, name: str, dtype: str) -> None:
    if name == ZERO_COND_MARKER:
        return
    if name.startswith(_COMFY):
        raise unsupported(
            f"{label} has names of a single file of ComfyUI's ({name}): name ComfyUI's folder by "
            "comfyui:FOLDER, or take the model in diffusers layout"
        )
    if _LORA.search(name):
        raise unsupported(
            f"{label} holds a LoRA ({name}), which would not be applied: merge it into the weights"
        )
    if dtype not in {*_FLOATS, *float8.FLOAT8} or _QUANTISED.search(name):
        raise unsupported(
            f"{label} holds quantised weights ({name}, {dtype}), which are not computed with: "
            "dequantise it to bf16, or take the bf16 weights"
        )
