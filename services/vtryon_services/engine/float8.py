"""Weights in 8-bit floating point: their scales in a file, and layers that keep them so.

A weight is its stored value times its scale, in float32, and then in the element type that is
computed with. Styles: no scale; `X.scale_weight` in a file with the marker `scaled_fp8`, and
`X.weight_scale`, marked by `X.comfy_quant` or not, both of ComfyUI. Scales of inputs matter to
products in fp8 alone, which are not computed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from vtryon_services.engine.headers import Stored
from vtryon_services.engine.refusals import corrupt, few, unsupported

FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
_FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
MARKER = "scaled_fp8"
_WEIGHT_SCALES = ("scale_weight", "weight_scale")
_INPUT_SCALES = ("scale_input", "input_scale")
_QUANT = "comfy_quant"
# Of a layer's marker: how ComfyUI multiplies. The product here is in the computed element type.
_QUANT_FIELDS = {"format", "full_precision_matrix_mult"}
_SCALE_TYPES = {"F32", "F16", "BF16"}


class Float8Linear(nn.Module):
    """A linear layer that keeps its weight in fp8 and dequantises it for each product.

    Shapes:
        weight: (out, in), fp8; scale: 0 or 2 dimensions, float32, of the tensor or its rows.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, scale: torch.Size) -> None:
        super().__init__()
        device = linear.weight.device
        # Buffers: the element type of a model is that of its parameters.
        self.weight = nn.Buffer(torch.empty(linear.weight.shape, dtype=dtype, device=device))
        self.scale = nn.Buffer(torch.empty(scale, dtype=torch.float32, device=device))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply in the input's element type."""
        return nn.functional.linear(x, dequantise(self.weight, self.scale, x.dtype), self.bias)


def dequantise(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Give a weight's values; the scale is shaped by `spread`."""
    return (weight.float() * scale).to(dtype)


def spread(scale: torch.Tensor, dimensions: int) -> torch.Tensor:
    """Shape a scale in float32 for a weight: without dimensions, or one value for each row."""
    values = scale.float().flatten()
    return values[0] if values.numel() == 1 else values.view(-1, *[1] * (dimensions - 1))


def keep_(model: nn.Module, tensors: Mapping[str, Stored]) -> None:
    """Replace each linear layer of an empty model whose weight is stored in fp8, in place."""
    for name, module in list(model.named_modules()):
        stored = tensors.get(f"{name}.weight")
        if type(module) is not nn.Linear or stored is None or stored.dtype not in FLOAT8:
            continue
        size = torch.Size([] if stored.scale is None or stored.scale.elements == 1 else [-1, 1])
        rows = [stored.shape[0] if side < 0 else side for side in size]
        owner, _, own = name.rpartition(".")
        kept = Float8Linear(module, FLOAT8[stored.dtype], torch.Size(rows))
        setattr(model.get_submodule(owner), own, kept)


def is_kept(model: nn.Module) -> bool:
    """Whether a layer of a model keeps its weight in fp8."""
    return any(isinstance(module, Float8Linear) for module in model.modules())


def attach_scales(part: str, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Give each fp8 weight its scale; take out scales and markers, every one of them checked.

    Raises:
        SettingsError: a style of quantisation that is not known, or scales without a weight.
    """
    _check_metadata(part, tensors)
    markers = _markers(tensors)
    found = dict(tensors)
    for name, stored in tensors.items():
        owner, _, kind = name.rpartition(".")
        if name == MARKER:
            del found[name]
        if kind not in {*_WEIGHT_SCALES, *_INPUT_SCALES, _QUANT}:
            continue
        del found[name]
        weight = tensors.get(f"{owner}.weight")
        if weight is None or weight.dtype not in FLOAT8:
            raise _not_of_float8(part, name, weight)
        if kind == _QUANT:
            _check_quant(part, name, markers[name], weight)
        elif kind in _WEIGHT_SCALES:
            found[f"{owner}.weight"] = _scaled(part, name, stored, found[f"{owner}.weight"])
    return found


def _scaled(part: str, name: str, scale: Stored, weight: Stored) -> Stored:
    rows = weight.shape[0] if weight.shape else 1
    fits = scale.elements == 1 or scale.shape in {(rows,), (rows, *[1] * (len(weight.shape) - 1))}
    if not fits or scale.dtype not in _SCALE_TYPES:
        raise unsupported(
            f"{part}: {name} has the shape {scale.shape} in {scale.dtype}; scales of fp8 weights "
            f"are known for the whole tensor or for each of its {rows} rows, in floating point: "
            "take the bf16 weights, or those scaled so"
        )
    if weight.scale is not None:
        raise corrupt(f"{part}: {name} is a second scale of its weight")
    return weight._replace(scale=scale)


def _markers(tensors: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
    """Read the markers of layers, each file opened once."""
    marked = {name: one for name, one in tensors.items() if name.endswith(f".{_QUANT}")}
    found = {}
    for path in {stored.file for stored in marked.values()}:
        with safe_open(path, framework="pt") as file:
            for name, stored in marked.items():
                if stored.file == path:
                    found[name] = file.get_tensor(stored.key)
    return found


def _check_quant(part: str, name: str, content: torch.Tensor, weight: Stored) -> None:
    try:
        marker = json.loads(bytes(content.tolist()))
        style, fields = marker["format"], set(marker)
    except (ValueError, KeyError, TypeError) as error:
        raise unsupported(
            f"{part}: {name} is no description of a format: take the bf16 weights"
        ) from error
    if _FORMATS.get(style) != weight.dtype or fields - _QUANT_FIELDS:
        raise unsupported(
            f"{part}: {name} names the format {marker} of weights in {weight.dtype}; known are "
            f"{' and '.join(_FORMATS)}: take the bf16 weights, or scaled fp8"
        )


def _check_metadata(part: str, tensors: Mapping[str, Stored]) -> None:
    """Read ComfyUI's other place for formats: the metadata of a file."""
    for path in sorted({stored.file for stored in tensors.values()}):
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("_quantization_metadata")
        if text is None:
            continue
        styles = _styles(text)
        if styles is None or styles - _FORMATS.keys():
            raise unsupported(
                f"{part}/{path.name}: its metadata name the formats "
                f"{few(sorted(styles or {'unreadable'}))}; known are {' and '.join(_FORMATS)}: "
                "take the bf16 weights, or scaled fp8"
            )


def _styles(text: str) -> set[str] | None:
    try:
        layers: Any = json.loads(text)["layers"].values()
        return {str(one["format"]) for one in layers}
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def _not_of_float8(part: str, name: str, weight: Stored | None) -> Exception:
    of = "no weight" if weight is None else f"a weight in {weight.dtype}"
    return unsupported(
        f"{part}: {name} belongs to {of}; scales are known of weights in {' and '.join(FLOAT8)}, "
        "and this one would not be applied: take the bf16 weights"
    )
