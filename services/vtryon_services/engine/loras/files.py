"""LoRA files: the key styles of diffusers, PEFT, kohya and ComfyUI, read into one form."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from vtryon.errors import SettingsError
from vtryon_services.engine.content import content_digest
from vtryon_services.engine.float8 import Float8Linear
from vtryon_services.engine.loras.choice import LoraFacts, check_files, label_of
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.refusals import corrupt, few, library_errors, unsupported

_PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "lora_unet_",
    "lycoris_",
)
_DOWN, _UP, _ALPHA = "down", "up", "alpha"
# Ends of keys: PEFT and diffusers, kohya and ComfyUI, and older files of diffusers.
_KINDS = (
    (re.compile(r"\.lora_A(\.\w+)?\.weight$"), _DOWN),
    (re.compile(r"\.lora_B(\.\w+)?\.weight$"), _UP),
    (re.compile(r"[._]lora[._]down\.weight$"), _DOWN),
    (re.compile(r"[._]lora[._]up\.weight$"), _UP),
    (re.compile(r"\.lora_linear_layer\.down\.weight$"), _DOWN),
    (re.compile(r"\.lora_linear_layer\.up\.weight$"), _UP),
    (re.compile(r"\.alpha$"), _ALPHA),
)
_PEFT_METADATA = "lora_adapter_metadata"
# Settings of PEFT that change the result, and starts of training that leave the weights alone.
_NOT_COMPUTED = ("use_dora", "lora_bias", "bias_pattern", "megatron_config", "layer_replication")
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "lora_ga")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LIGHTNING = re.compile(r"lightning", re.IGNORECASE)
_STEPS = re.compile(r"(?<![\dv.])(\d{1,2})[-_ ]?steps?(?![a-z\d])", re.IGNORECASE)
_MOST_STEPS = 16  # of a distilled model; what is more is no number of sampling steps


class LowRank(NamedTuple):
    """What a LoRA adds to a layer: up · down · x, scaled by alpha / rank already.

    Shapes:
        down: (rank, values in); up: (values out, rank).
    """

    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA that was read.

    Attributes:
        name: by which requests choose it.
        layers: the additions, by the layer's name in the transformer.
    """

    name: str
    facts: LoraFacts
    layers: Mapping[str, LowRank]


def read_loras(
    paths: Mapping[str, Path], transformer: nn.Module, placement: Placement
) -> list[LoadedLora]:
    """Read LoRAs, and match every tensor of them with a linear layer of the transformer.

    Args:
        paths: safetensors files, by the names by which requests choose them.
        transformer: the model that they belong to; it is not changed.
        placement: device and element type of the additions.

    Raises:
        SettingsError: the file is missing or damaged, has keys that fit no layer, or has additions
            of another kind (LoKr, LoHa, DoRA, differences of biases).
    """
    check_files(paths)
    shapes = {
        name: layer.weight.shape
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear | Float8Linear)
    }
    return [_read_lora(name, path, shapes, placement) for name, path in paths.items()]


def _read_lora(
    name: str, path: Path, shapes: Mapping[str, torch.Size], placement: Placement
) -> LoadedLora:
    label = label_of(name, path)
    tensors, metadata = _read(label, path)
    found = _by_layer(label, tensors, shapes)
    scaling = _peft_scaling(label, metadata, shapes)
    layers = {
        layer: _low_rank(f"{label}: {layer}", parts, shapes[layer], scaling, layer, placement)
        for layer, parts in found.items()
    }
    return LoadedLora(name, LoraFacts(content_digest(path), _lightning_steps(path.stem)), layers)


def _lightning_steps(stem: str) -> int | None:
    if not _LIGHTNING.search(stem):
        return None
    steps = int(found[1]) if (found := _STEPS.search(stem)) else 0
    return steps if 1 <= steps <= _MOST_STEPS else None


def _read(label: str, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise corrupt(f"{label} is no whole safetensors file") from error


def _by_layer(
    label: str, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]
) -> dict[str, dict[str, torch.Tensor]]:
    """Sort tensors by layer and kind.

    Raises:
        SettingsError: names the keys that fit no layer.
    """
    # kohya writes a layer's name with underscores in place of dots.
    names = {name: name for name in shapes} | {name.replace(".", "_"): name for name in shapes}
    found: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    others: list[str] = []
    for key, tensor in tensors.items():
        stem, kind = _split(key)
        layer = names.get(stem)
        if layer is None or not kind:
            others.append(key)
        elif kind in found[layer]:
            raise corrupt(f"{label} has {kind} of {layer} twice")
        else:
            found[layer][kind] = tensor
    if others:
        raise _no_layer(label, sorted(others), len(tensors))
    if not found:
        raise corrupt(f"{label} holds no tensors")
    return found


def _split(key: str) -> tuple[str, str]:
    """Split a key into the layer's name without prefixes, and the kind of the tensor."""
    stem = key
    for prefix in _PREFIXES:
        stem = stem.removeprefix(prefix)
    for pattern, kind in _KINDS:
        if match := pattern.search(stem):
            return stem[: match.start()], kind
    return stem, ""


def _no_layer(label: str, others: list[str], total: int) -> SettingsError:
    return unsupported(
        f"{label}: {len(others)} of its {total} tensors fit no linear layer of this checkpoint's "
        f"transformer, and would be passed over: {few(others)}. Only LoRAs of the transformer are "
        "applied (no LoKr, LoHa, DoRA, biases or text encoders), made for this model"
    )


class _Scaling(NamedTuple):
    """How PEFT scales a LoRA, by the metadata of its file.

    Attributes:
        alphas: by layer.
        rank_stabilised: whether by alpha / √rank in place of alpha / rank.
    """

    alphas: Mapping[str, float]
    rank_stabilised: bool = False


def _peft_scaling(label: str, metadata: Mapping[str, str], layers: Iterable[str]) -> _Scaling:
    """Read the settings that PEFT and diffusers store in the file's metadata.

    Raises:
        SettingsError: they can't be read, or change the result in a way that is not computed.
    """
    if _PEFT_METADATA not in metadata:
        return _Scaling({})
    with library_errors(f"{label}: its {_PEFT_METADATA}"):
        config = json.loads(metadata[_PEFT_METADATA])
        own = {key.removeprefix("transformer."): value for key, value in config.items()}
        if changed := sorted(name for name in _NOT_COMPUTED if own.get(name)):
            raise unsupported(
                f"{label} was trained with {', '.join(changed)}, which is not computed: merge it "
                "into the weights by PEFT"
            )
        if own.get("init_lora_weights", True) not in _PLAIN_STARTS:
            raise unsupported(
                f"{label} was trained from {own['init_lora_weights']}, which changes the weights "
                "themselves: convert it to a plain LoRA by PEFT"
            )
        default, patterns = own.get("lora_alpha"), own.get("alpha_pattern") or {}
        found = {layer: _alpha_of(layer, patterns, default) for layer in layers}
        alphas = {layer: float(alpha) for layer, alpha in found.items() if alpha is not None}
        return _Scaling(alphas, bool(own.get("use_rslora")))


def _alpha_of(layer: str, patterns: Mapping[str, Any], default: Any) -> Any:
    for pattern, alpha in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            return alpha
    return default


def _low_rank(
    label: str,
    parts: Mapping[str, torch.Tensor],
    size: torch.Size,
    scaling: _Scaling,
    layer: str,
    placement: Placement,
) -> LowRank:
    if missing := {_DOWN, _UP} - parts.keys():
        raise corrupt(f"{label} has no {' and no '.join(sorted(missing))} half")
    down, up = parts[_DOWN], parts[_UP]
    for one in parts.values():
        if one.dtype not in _FLOATS:
            raise unsupported(f"{label} has values of {one.dtype}: convert them to bf16 or fp32")
    rank, (values_out, values_in) = max(1, len(down)) if down.dim() else 1, size
    wanted = ((rank, values_in), (values_out, rank))
    if (tuple(down.shape), tuple(up.shape)) != wanted:
        raise unsupported(
            f"{label} has halves of {tuple(down.shape)} and {tuple(up.shape)}; this checkpoint's "
            f"layer takes {wanted[0]} and {wanted[1]}: the LoRA was made for another model"
        )
    scale = _scale(label, parts.get(_ALPHA), scaling, layer, rank)
    if not (math.isfinite(scale) and down.isfinite().all() and up.isfinite().all()):
        raise corrupt(f"{label} has values that are not finite")
    device, dtype = placement.device, placement.dtype
    return LowRank(down.to(device, dtype), (up.float() * scale).to(device, dtype))


def _scale(
    label: str, tensor: torch.Tensor | None, scaling: _Scaling, layer: str, rank: int
) -> float:
    """Return the factor of up · down; 1 for a file that has no alpha."""
    if tensor is not None and tensor.numel() != 1:
        raise corrupt(f"{label} has an alpha of {tensor.numel()} values")
    alpha = scaling.alphas.get(layer) if tensor is None else float(tensor)
    if alpha is None:
        return 1.0
    return alpha / (math.sqrt(rank) if scaling.rank_stabilised else rank)
