"""LoRAs in every key style, applied per request: equal to merged weights, and to diffusers' own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.loaders import QwenImageLoraLoaderMixin
from safetensors.torch import save_file
from tests.support.batching import random_sampler, random_transformer, sampler_of

from vtryon.errors import Reason, SettingsError
from vtryon.types import Numerics, Profile
from vtryon_services.engine.defaults import Guidance
from vtryon_services.engine.float8 import Float8Linear
from vtryon_services.engine.loras.files import read_loras
from vtryon_services.engine.loras.layers import LoraLayers
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.plan import SamplingPlan
from vtryon_services.engine.sampler import Given, Sampler

CPU = Placement(torch.device("cpu"), torch.float32)
LAYERS = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.to_out.0",
    "transformer_blocks.1.attn.add_k_proj",
    "transformer_blocks.1.attn.to_add_out",
    "transformer_blocks.0.img_mlp.net.0.proj",
    "transformer_blocks.1.txt_mlp.net.2",
    "transformer_blocks.1.img_mod.1",
    "transformer_blocks.0.txt_mod.1",
)
OUTER = ("img_in", "proj_out", "norm_out.linear", "time_text_embed.timestep_embedder.linear_1")
RANK, ALPHA = 3, 6.0
Pairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def pairs(model: torch.nn.Module, layers: tuple[str, ...] = LAYERS, seed: int = 0) -> Pairs:
    """Random halves for some layers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    return {
        name: (draw(RANK, layer.in_features), draw(layer.out_features, RANK))
        for name in layers
        for layer in [model.get_submodule(name)]
    }


def plain(prefix: str, down: str, up: str) -> Callable[[Pairs], dict[str, torch.Tensor]]:
    def tensors(own: Pairs) -> dict[str, torch.Tensor]:
        halves = {f"{prefix}{name}{down}": pair[0] for name, pair in own.items()}
        return halves | {f"{prefix}{name}{up}": pair[1] for name, pair in own.items()}

    return tensors


def with_alpha(
    prefix: str, down: str, up: str, separator: str = "."
) -> Callable[[Pairs], dict[str, torch.Tensor]]:
    def tensors(own: Pairs) -> dict[str, torch.Tensor]:
        named = {name.replace(".", separator): pair for name, pair in own.items()}
        alphas = {f"{prefix}{name}.alpha": torch.tensor(ALPHA) for name in named}
        return plain(prefix, down, up)(named) | alphas

    return tensors


AB = (".lora_A.weight", ".lora_B.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")
# Style: tensors of a file, and the scale that they have.
STYLES = {
    "diffusers": (plain("transformer.", *AB), 1.0),
    "bare": (plain("", *AB), 1.0),
    "PEFT's adapter": (plain("base_model.model.", *AB), 1.0),
    "named adapter": (plain("transformer.", ".lora_A.default.weight", ".lora_B.default.weight"), 1),
    "lightx2v": (with_alpha("", *DOWN_UP), ALPHA / RANK),
    "ComfyUI": (with_alpha("diffusion_model.", *AB), ALPHA / RANK),
    "ComfyUI, down and up": (with_alpha("diffusion_model.", *DOWN_UP), ALPHA / RANK),
    "kohya": (with_alpha("lora_unet_", *DOWN_UP, separator="_"), ALPHA / RANK),
}
# Those that diffusers 0.42.1 reads as well.
READ_BY_DIFFUSERS = STYLES.keys() - {"bare", "named adapter", "PEFT's adapter"}


def write(folder: Path, name: str, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    path = folder / f"{name}.safetensors"
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt", **metadata})
    return path


def merged(model: torch.nn.Module, own: Pairs, scale: float) -> None:
    """Add a LoRA to the weights themselves."""
    for name, (down, up) in own.items():
        model.get_submodule(name).weight.data += scale * (up @ down)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_read_with_its_alpha(style: str, tmp_path: Path) -> None:
    model = random_transformer()
    own = pairs(model, LAYERS + OUTER)
    make, scale = STYLES[style]
    [lora] = read_loras({"a": write(tmp_path, "a", make(own))}, model, CPU)
    assert set(lora.layers) == set(own)
    for name, (down, up) in own.items():
        torch.testing.assert_close(lora.layers[name].up @ lora.layers[name].down, scale * up @ down)


@pytest.mark.parametrize("style", sorted(READ_BY_DIFFUSERS))
def test_a_forward_is_that_of_diffusers(style: str, tmp_path: Path) -> None:
    """Loaded by diffusers and PEFT into another copy of the same transformer."""
    path = write(tmp_path, "a", STYLES[style][0](pairs(random_transformer())))
    ours, theirs = random_transformer(), random_transformer()
    layers = LoraLayers(ours, read_loras({"a": path}, ours, CPU))
    layers.select([{"a": 1.0}], torch.device("cpu"))
    state = QwenImageLoraLoaderMixin.lora_state_dict(str(path))
    theirs.load_lora_adapter(state, prefix="transformer")
    torch.testing.assert_close(forward(ours), forward(theirs), rtol=1e-4, atol=1e-5)
    layers.select([{}], torch.device("cpu"))
    torch.testing.assert_close(forward(ours), forward(random_transformer()), rtol=0, atol=0)


def forward(model: QwenImageTransformer2DModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        return model(
            hidden_states=torch.randn((1, 12, 16), generator=generator),
            encoder_hidden_states=torch.randn((1, 5, 32), generator=generator),
            encoder_hidden_states_mask=None,
            timestep=torch.tensor([0.7]),
            img_shapes=[[(1, 2, 3), (1, 2, 3)]],
            return_dict=False,
        )[0]


def test_alphas_in_metadata_are_read_as_diffusers_writes_them(tmp_path: Path) -> None:
    model = random_transformer()
    own = pairs(model)
    settings = {"lora_alpha": 12, "alpha_pattern": {"attn.to_q": 3}, "r": RANK}
    config = {f"transformer.{key}": value for key, value in settings.items()}
    tensors = STYLES["diffusers"][0](own)
    path = write(tmp_path, "a", tensors, lora_adapter_metadata=json.dumps(config))
    [lora] = read_loras({"a": path}, model, CPU)
    for name, (down, up) in own.items():
        scale = (3 if name.endswith("to_q") else 12) / RANK
        torch.testing.assert_close(lora.layers[name].up @ lora.layers[name].down, scale * up @ down)


def with_settings(folder: Path, own: Pairs, name: str, **settings: object) -> Path:
    config = {f"transformer.{key}": value for key, value in {"r": RANK, **settings}.items()}
    tensors = STYLES["diffusers"][0](own)
    return write(folder, name, tensors, lora_adapter_metadata=json.dumps(config))


def test_rank_stabilised_alphas_are_those_of_diffusers(tmp_path: Path) -> None:
    ours, theirs = random_transformer(), random_transformer()
    settings = {"lora_alpha": ALPHA, "use_rslora": True, "target_modules": [*LAYERS]}
    path = with_settings(tmp_path, pairs(ours), "a", **settings)
    layers = LoraLayers(ours, read_loras({"a": path}, ours, CPU))
    layers.select([{"a": 1.0}], torch.device("cpu"))
    state, metadata = QwenImageLoraLoaderMixin.lora_state_dict(str(path), return_lora_metadata=True)
    theirs.load_lora_adapter(state, prefix="transformer", metadata=metadata)
    torch.testing.assert_close(forward(ours), forward(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"lora_bias": True}, {"init_lora_weights": "pissa"}],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_peft_that_are_not_computed_are_refused(
    settings: dict[str, object], tmp_path: Path
) -> None:
    model = random_transformer()
    path = with_settings(tmp_path, pairs(model), "a", lora_alpha=ALPHA, **settings)
    with pytest.raises(SettingsError, match=r"dora|lora_bias|pissa"):
        read_loras({"a": path}, model, CPU)


MIX: tuple[Mapping[str, float], ...] = (
    {},
    {"a": 1.0},
    {"a": 0.5},
    {"b": 1.0},
    {"a": -0.7, "b": 1.3},
)


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_requests_that_share_a_batch_have_the_latents_of_merged_weights(
    zero_cond_t: bool, tmp_path: Path
) -> None:
    model = random_transformer(zero_cond_t=zero_cond_t)
    own = {"a": pairs(model), "b": pairs(model, (*LAYERS[2:6], *OUTER), seed=1)}
    files = {
        "a": write(tmp_path, "a", STYLES["kohya"][0](own["a"])),
        "b": write(tmp_path, "b", STYLES["diffusers"][0](own["b"])),
    }
    sampler = sampler_of(model, loras=read_loras(files, model, CPU))
    samples = [sampler.begin(*request(sampler, n, loras)) for n, loras in enumerate(MIX)]
    for _ in range(3):
        sampler.advance(samples)
    for number, strengths in enumerate(MIX):
        alone = random_transformer(zero_cond_t=zero_cond_t)
        for name, strength in strengths.items():
            merged(alone, own[name], strength * (ALPHA / RANK if name == "a" else 1.0))
        other = sampler_of(alone)
        sample = other.begin(*request(other, number, {}))
        while not sample.finished:
            other.advance([sample])
        torch.testing.assert_close(
            samples[number].latents(), sample.latents(), rtol=1e-3, atol=1e-4
        )


def request(
    sampler: Sampler, number: int, loras: Mapping[str, float]
) -> tuple[SamplingPlan, Given]:
    """A request with guidance, where its number is odd; prompts of different lengths."""
    numerics = resolve(Numerics(profile=Profile.COMFY))
    generator = torch.Generator().manual_seed(number)
    scale = 3.0 if number % 2 else 1.0
    plan = SamplingPlan(
        numerics=numerics,
        width=48,
        height=32,
        sigmas=sampler.sigmas(numerics, 3, 48, 32, 1.0),
        guidance=Guidance(scale),
        seed=number,
        loras=loras,
    )
    given = Given(
        positive=torch.randn((4 + number, 32), generator=generator),
        negative=torch.randn((3, 32), generator=generator) if scale > 1 else None,
        references=[torch.randn((4, 4, 6), generator=generator)],
    )
    return plan, given


def test_layers_that_stay_in_fp8_take_loras_as_well(tmp_path: Path) -> None:
    """Kept in fp8 and dequantised as they are computed, or dequantised before."""
    kept, plain_ = random_transformer(), random_transformer()
    own = pairs(kept)
    path = write(tmp_path, "a", STYLES["ComfyUI"][0](own))
    for name in LAYERS:
        linear = plain_.get_submodule(name)
        layer = Float8Linear(linear, torch.float8_e4m3fn, torch.Size([]))
        layer.weight.copy_(linear.weight)
        layer.scale.fill_(1.0)
        linear.weight.data = layer.weight.float()
        owner, _, last = name.rpartition(".")
        setattr(kept.get_submodule(owner), last, layer)
    merged(plain_, own, ALPHA / RANK)
    layers = LoraLayers(kept, read_loras({"a": path}, kept, CPU))
    layers.select([{"a": 1.0}], torch.device("cpu"))
    torch.testing.assert_close(forward(kept), forward(plain_), rtol=1e-4, atol=1e-5)


def test_an_unused_lora_changes_no_bit(tmp_path: Path) -> None:
    model = random_transformer(zero_cond_t=True)
    path = write(tmp_path, "a", STYLES["diffusers"][0](pairs(model)))
    with_file = sampler_of(model, loras=read_loras({"a": path}, model, CPU))
    results = []
    for sampler in (with_file, random_sampler()):
        sample = sampler.begin(*request(sampler, 1, {}))
        sampler.advance([sample])
        results.append(sample.latents())
    assert torch.equal(*results)


BROKEN = {
    "LoHa": ({"diffusion_model.img_in.hada_w1_a": torch.ones(2, 2)}, "img_in.hada_w1_a"),
    "LoKr": ({"lycoris_img_in.lokr_w1": torch.ones(2, 2)}, "lycoris_img_in.lokr_w1"),
    "DoRA": ({"transformer.img_in.dora_scale": torch.ones(2)}, "img_in.dora_scale"),
    "a bias": ({"diffusion_model.img_in.diff_b": torch.ones(2)}, "img_in.diff_b"),
    "text encoder": ({"lora_te_model.lora_down.weight": torch.ones(2, 2)}, "lora_te_model"),
    "another model": (
        {"transformer.single_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 2)},
        "single_blocks.0.attn.to_q",
    ),
    "more layers": (
        {"transformer.transformer_blocks.9.attn.to_q.lora_A.weight": torch.ones(2, 2)},
        "transformer_blocks.9.attn.to_q",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_tensor_that_fits_no_layer_is_named(kind: str, tmp_path: Path) -> None:
    model = random_transformer()
    tensors, named = BROKEN[kind]
    path = write(tmp_path, "a", STYLES["diffusers"][0](pairs(model)) | tensors)
    with pytest.raises(SettingsError, match=r"^LoRA a \(a.safetensors\): 1 of its 17") as caught:
        read_loras({"a": path}, model, CPU)
    assert named in str(caught.value)
    assert caught.value.reason is Reason.CHECKPOINT_UNSUPPORTED


def test_what_does_not_hold_is_refused(tmp_path: Path) -> None:
    model = random_transformer()
    tensors = STYLES["diffusers"][0](pairs(model, ("img_in",)))
    key = "transformer.img_in.lora_A.weight"

    def refused(path: Path) -> str:
        with pytest.raises(SettingsError) as caught:
            read_loras({"a": path}, model, CPU)
        assert str(tmp_path) not in str(caught.value)
        return str(caught.value)

    assert "no such file" in refused(tmp_path / "gone.safetensors")
    half = {name: tensor for name, tensor in tensors.items() if name != key}
    assert "img_in has no down half" in refused(write(tmp_path, "half", half))
    wide = {**tensors, key: torch.ones(RANK, 7)}
    assert "made for another model" in refused(write(tmp_path, "wide", wide))
    broken = {**tensors, key: torch.full_like(tensors[key], float("nan"))}
    assert "not finite" in refused(write(tmp_path, "nan", broken))
    assert "holds no tensors" in refused(write(tmp_path, "empty", {}))
    twice = tensors | STYLES["bare"][0](pairs(model, ("img_in",)))
    assert "twice" in refused(write(tmp_path, "twice", twice))
    fp8 = {**tensors, key: tensors[key].to(torch.float8_e4m3fn)}
    assert "values of torch.float8_e4m3fn" in refused(write(tmp_path, "fp8", fp8))
    none = {name: tensor[:0] if name == key else tensor[:, :0] for name, tensor in tensors.items()}
    assert "halves of (0, 16)" in refused(write(tmp_path, "none", none))
    many = {**STYLES["lightx2v"][0](pairs(model, ("img_in",))), "img_in.alpha": torch.ones(2)}
    assert "an alpha of 2 values" in refused(write(tmp_path, "many", many))
    pattern = with_settings(
        tmp_path, pairs(model, ("img_in",)), "pattern", alpha_pattern={"attn.to_q(": 3}
    )
    assert "its lora_adapter_metadata can't be loaded" in refused(pattern)
    pickled = tmp_path / "a.pt"
    pickled.write_bytes(b"x")
    assert "no other format is loaded" in refused(pickled)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert "no whole safetensors file" in refused(torn)


@pytest.mark.parametrize(
    ("stem", "steps"),
    [
        ("Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16", 4),
        ("qwen-image-edit-2511-lightning-8steps", 8),
        ("Qwen-Lightning-8-steps", 8),
        ("lightning", None),
        ("lightning-dress_2000steps", None),
        ("dress-lightning-v1-step40", None),
        ("try-on", None),
    ],
)
def test_the_steps_of_a_lightning_lora_are_in_its_name(
    stem: str, steps: int | None, tmp_path: Path
) -> None:
    model = random_transformer()
    path = write(tmp_path, stem, STYLES["diffusers"][0](pairs(model)))
    [lora] = read_loras({"a": path}, model, CPU)
    assert lora.facts.lightning_steps == steps
