"""Weights in fp8, in every known style: what they dequantise to, kept in memory as fp8 or not."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.support.broken_checkpoints import TEXT, TRANSFORMER
from transformers import Qwen2_5_VLForConditionalGeneration

from vtryon.errors import Reason, SettingsError
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.float8 import Float8Linear, is_kept
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.sampler import Sampler
from vtryon_services.engine.text_encoder import PromptEncoder

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LAYER = "transformer_blocks.0.attn.to_q"


def quant(**fields: object) -> torch.Tensor:
    return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)


def scaled(weight: torch.Tensor, scale: torch.Tensor, dtype=E4M3) -> torch.Tensor:
    return (weight.float() / scale).to(dtype)


def plain(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    stored = weight.to(E4M3)
    return {f"{name}.weight": stored}, stored.float()


def plain_e5m2(name: str, weight: torch.Tensor):
    stored = weight.to(E5M2)
    return {f"{name}.weight": stored}, stored.float()


def older(name: str, weight: torch.Tensor):
    scale = (weight.abs().max().float() / 448).reshape(1)
    stored = scaled(weight, scale)
    beside = {f"{name}.scale_weight": scale, f"{name}.scale_input": torch.full((1,), 3.0)}
    return {f"{name}.weight": stored, **beside}, stored.float() * scale


def newer(name: str, weight: torch.Tensor):
    scale = weight.abs().max().float() / 448
    stored = scaled(weight, scale)
    marker = quant(format="float8_e4m3fn", full_precision_matrix_mult=True)
    beside = {f"{name}.weight_scale": scale, f"{name}.comfy_quant": marker}
    beside[f"{name}.input_scale"] = torch.tensor(3.0)
    return {f"{name}.weight": stored, **beside}, stored.float() * scale


def by_rows(name: str, weight: torch.Tensor):
    scale = weight.abs().amax(1, keepdim=True).float().clamp_min(1e-9) / 448
    stored = scaled(weight, scale)
    return {f"{name}.weight": stored, f"{name}.weight_scale": scale}, stored.float() * scale


STYLES = {"plain": plain, "e5m2": plain_e5m2, "scale_weight": older, "comfy_quant": newer}
STYLES["rows"] = by_rows


def quantise(path, style: str) -> dict[str, torch.Tensor]:
    """Store a file's matrices in a style, but every fifth; give what they stand for."""
    found, stands = load_file(path), {}
    matrices = [
        name.removesuffix(".weight")
        for name, one in sorted(found.items())
        if one.dim() == 2 and name.endswith(".weight") and "embed" not in name
    ]
    for number, name in enumerate(matrices):
        if number % 5:
            added, stands[f"{name}.weight"] = STYLES[style](name, found.pop(f"{name}.weight"))
            found |= added
    if style == "scale_weight":
        found["scaled_fp8"] = torch.zeros(2, dtype=E4M3)
    save_file(found, path)
    return stands


@pytest.fixture
def copy(tmp_path):
    folder = shutil.copytree(SHIPPED_CHECKPOINT, tmp_path / "checkpoint")
    (folder / "digests.json").unlink()
    return folder


@pytest.fixture(params=STYLES)
def pair(request, copy, tmp_path):
    """A checkpoint in fp8, and a plain one of the same values."""
    same = shutil.copytree(copy, tmp_path / "same")
    for file in (TRANSFORMER, TEXT):
        stands = quantise(copy / file, request.param)
        whole = load_file(same / file)
        save_file({name: stands.get(name, one).float() for name, one in whole.items()}, same / file)
    return copy, same


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_fp8_is_computed_as_the_plain_checkpoint_is(pair, dtype: str) -> None:
    quantised, same = map(Checkpoint.open, pair)
    kept, loaded = (Placement.of("cpu", dtype, keep_fp8=one) for one in (True, False))
    plain, whole, small = (
        Sampler.load(*one).transformer
        for one in ((same, loaded), (quantised, loaded), (quantised, kept))
    )
    assert is_kept(small)
    assert not is_kept(whole)
    wanted, found = plain.state_dict(), whole.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert small.dtype == whole.dtype == kept.dtype
    given = torch.randn(3, 128).to(kept.dtype)
    layer = "transformer_blocks.1.attn.to_k"
    assert torch.equal(small.get_submodule(layer)(given), plain.get_submodule(layer)(given))
    count = sum(isinstance(one, Float8Linear) for one in small.modules())
    assert count == sum(one.dtype in {E4M3, E5M2} for one in small.state_dict().values()) > 50


@pytest.mark.parametrize("pair", ["scale_weight", "rows"], indirect=True)
def test_prompts_have_the_embeddings_of_the_plain_checkpoint(pair) -> None:
    quantised, same = map(Checkpoint.open, pair)
    placements = [Placement.of("cpu", "fp32", keep_fp8=one) for one in (True, False)]
    found = []
    for checkpoint, placement in ((same, placements[0]), *((quantised, p) for p in placements)):
        encoder = PromptEncoder.load(checkpoint, placement)
        found += encoder.embed(encoder.prepare(["a red shirt"], [], resolve(None)))
        assert is_kept(encoder.model) == (checkpoint is quantised and placement.keep_fp8)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_text_encoder_is_the_one_that_the_library_loads(dtype: str) -> None:
    placement = Placement.of("cpu", dtype)
    ours = PromptEncoder.load(Checkpoint.open(SHIPPED_CHECKPOINT), placement).model
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        SHIPPED_CHECKPOINT / "text_encoder", dtype=placement.dtype
    ).model
    wanted, found = (
        dict([*one.named_parameters(), *one.named_buffers()]) for one in (theirs, ours)
    )
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert ours.config._attn_implementation == theirs.config._attn_implementation
    text, other = ours.config.text_config, theirs.config.text_config
    assert text._attn_implementation == other._attn_implementation


def test_compiled_blocks_refuse_kept_weights_by_the_setting(copy) -> None:
    quantise(copy / TRANSFORMER, "plain")
    with pytest.raises(SettingsError, match="VTRYON_SAMPLING_KEEP_FP8=false"):
        Sampler.load(Checkpoint.open(copy), Placement.of("cpu", "fp32"), compiled=True)


MATRIX = torch.zeros(128, 128, dtype=E4M3)
UNKNOWN = {
    "scales of blocks": {"weight": MATRIX, "weight_scale": torch.ones(128, 4)},
    "scales that are whole numbers": {
        "weight": MATRIX,
        "weight_scale": torch.ones(1, dtype=torch.int8),
    },
    "two scales": {"weight": MATRIX, "weight_scale": torch.ones(1), "scale_weight": torch.ones(1)},
    "a scale of scales": {"weight": MATRIX, "weight_scale_2": torch.ones(1)},
    "the inverse of a scale": {"weight": MATRIX, "weight_scale_inv": torch.ones(1, 1)},
    "a scale of inputs before": {"weight": MATRIX, "pre_quant_scale": torch.ones(128)},
    "another format": {"weight": MATRIX, "comfy_quant": quant(format="nvfp4")},
    "the other format": {"weight": MATRIX, "comfy_quant": quant(format="float8_e5m2")},
    "a field of a format": {"comfy_quant": quant(format="float8_e4m3fn", convrot=True)}
    | {"weight": MATRIX},
    "a format that is none": {"weight": MATRIX, "comfy_quant": torch.zeros(3, dtype=torch.uint8)},
    "a scale of a plain weight": {"weight_scale": torch.ones(1)},
    "a scale of inputs of a plain weight": {"input_scale": torch.ones(1)},
    "packed fours": {"weight": torch.zeros(128, 64, dtype=torch.uint8)},
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_another_style_is_refused_by_name(copy, case: str) -> None:
    found = load_file(copy / TRANSFORMER)
    found |= {f"{LAYER}.{kind}": one for kind, one in UNKNOWN[case].items()}
    save_file(found, copy / TRANSFORMER)
    with pytest.raises(SettingsError, match=LAYER) as caught:
        Checkpoint.open(copy)
    assert caught.value.reason in {Reason.CHECKPOINT_UNSUPPORTED, Reason.CHECKPOINT_CORRUPT}


@pytest.mark.parametrize(
    ("layers", "fits"), [({LAYER: {"format": "float8_e4m3fn"}}, True), ({"a": {}}, False)]
)
def test_formats_in_the_metadata_of_a_file_are_read(copy, layers: object, fits: bool) -> None:
    quantise(copy / TRANSFORMER, "rows")
    with safe_open(copy / TRANSFORMER, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
    save_file(found, copy / TRANSFORMER, metadata)
    if fits:
        assert Checkpoint.open(copy).weights("transformer").is_float8
        return
    with pytest.raises(SettingsError, match="metadata name the formats"):
        Checkpoint.open(copy)
