"""ComfyUI's files as a checkpoint: tensors, settings and embeddings are those of diffusers'."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.services.engine.test_float8 import quantise
from tests.support.checkpoints import qwen_scheduler
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import vtryon
from vtryon.checkpoint_source import ComfyFolder, parse_source
from vtryon.errors import Reason, SettingsError
from vtryon.types import Stage
from vtryon_services.embedded import embedded_mesh
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, STAGE_PARTS, Checkpoint
from vtryon_services.engine.image_vae import ImageVae
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.published import ROPE, VISION
from vtryon_services.engine.sampler import Sampler
from vtryon_services.engine.text_encoder import PromptEncoder
from vtryon_services.models.make import let_processor_see

CPU = Placement.of("cpu", "fp32")
TRANSFORMER = "diffusion_models/qwen_edit_2509.safetensors"
TEXT = "text_encoders/qwen_2.5_vl_7b.safetensors"
VAE = "vae/qwen_image_vae.safetensors"
# diffusers' name of a part of the VAE, and Wan's.
BLOCK = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3"}
BLOCK |= {"conv2": "residual.6", "conv_shortcut": "shortcut"}
ENDS = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
MIDDLE = {"resnets.0": "middle.0", "attentions.0": "middle.1", "resnets.1": "middle.2"}


def plain(folder: Path) -> Path:
    """A small checkpoint in diffusers layout, of the widths that the published models share."""
    torch.manual_seed(5)
    folder.mkdir()
    shutil.copy(SHIPPED_CHECKPOINT / "model_index.json", folder)
    shutil.copytree(SHIPPED_CHECKPOINT / "tokenizer", folder / "tokenizer")
    shutil.copytree(SHIPPED_CHECKPOINT / "processor", folder / "processor")
    let_processor_see(folder)
    qwen_scheduler().save_pretrained(folder / "scheduler")
    AutoencoderKLQwenImage(base_dim=4).save_pretrained(folder / "vae")
    QwenImageTransformer2DModel(
        num_layers=2, num_attention_heads=1, joint_attention_dim=256
    ).save_pretrained(folder / "transformer")
    shipped = json.loads((SHIPPED_CHECKPOINT / "text_encoder" / "config.json").read_text())
    tokens = {name: value for name, value in shipped.items() if name.endswith("_token_id")}
    text = {"vocab_size": 704, "hidden_size": 256, "intermediate_size": 96}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    text |= {"rms_norm_eps": 1e-6}
    vision = {**VISION, "depth": 32, "hidden_size": 160, "num_heads": 2, "intermediate_size": 24}
    config = Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": dict(ROPE)},
        vision_config={**vision, "out_hidden_size": 256},
        **tokens,
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder / "text_encoder")
    return folder


def wan(name: str) -> str:
    """The name of a tensor of the VAE in ComfyUI's file."""
    parts = [name.removeprefix("post_quant_conv").removeprefix("quant_conv")]
    if parts[0] != name:
        return ("conv2" if name.startswith("post") else "conv1") + parts[0]
    half, _, rest = name.partition(".")
    for ours, theirs in MIDDLE.items():
        rest = rest.replace(f"mid_block.{ours}.", f"{theirs}.")
    rest = re.sub(r"^down_blocks\.", "downsamples.", rest)
    for kind, place in (("resnets", 0), ("upsamplers", 3)):
        found = re.match(rf"up_blocks\.(\d)\.{kind}\.(\d)\.", rest)
        if found:
            number = 4 * int(found[1]) + place + int(found[2])
            rest = f"upsamples.{number}.{rest[found.end() :]}"
    if rest.startswith(("middle.0", "middle.2", "downsamples", "upsamples")):
        for ours, theirs in BLOCK.items():
            rest = rest.replace(f".{ours}.", f".{theirs}.")
    for ours, theirs in ENDS.items():
        rest = re.sub(rf"^{ours}\.", f"{theirs}.", rest)
    return f"{half}.{rest}"


def older(name: str) -> str:
    """The name of a tensor of the text encoder as transformers 4 wrote it."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def comfy(folder: Path, of: Path, prefix: str = "") -> Path:
    """The same model as ComfyUI's files, in its `models` folder."""
    models = folder / "models"
    for kind in ("diffusion_models", "text_encoders", "vae"):
        (models / kind).mkdir(parents=True)
    found = load_file(of / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file({prefix + name: one for name, one in found.items()}, models / TRANSFORMER)
    found = load_file(of / "text_encoder" / "model.safetensors")
    save_file({older(name): one for name, one in found.items()}, models / TEXT)
    found = load_file(of / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({wan(name): one for name, one in found.items()}, models / VAE)
    tokenizer = folder / "comfy" / "text_encoders" / "qwen25_tokenizer"
    shutil.copytree(SHIPPED_CHECKPOINT / "tokenizer", tokenizer)
    return models


@pytest.fixture(scope="module")
def diffusers(tmp_path_factory) -> Path:
    return plain(tmp_path_factory.mktemp("plain") / "checkpoint")


@pytest.fixture
def models(tmp_path, diffusers) -> Path:
    return comfy(tmp_path, diffusers)


def same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    wanted, found = (dict([*m.named_parameters(), *m.named_buffers()]) for m in (one, other))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def settings(config: Mapping[str, object]) -> dict[str, object]:
    """A model's configuration, without what says where it is from."""
    names = {"architectures", "dtype", "transformers_version"}
    kept = {name: value for name, value in config.items() if name not in names | {"_name_or_path"}}
    return json.loads(json.dumps({n: v for n, v in kept.items() if not n.startswith("_")}))


def embed(checkpoint: Checkpoint) -> torch.Tensor:
    encoder = PromptEncoder.load(checkpoint, CPU)
    picture = Image.effect_noise((300, 200), 60).convert("RGB")
    picture.putdata([(x % 256, x % 7 * 30, x % 11 * 20) for x in range(60000)])
    [found] = encoder.embed(encoder.prepare(["a red shirt"], [picture], resolve(None)))
    return found


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_it_is_the_same_sampler(tmp_path, diffusers, prefix: str) -> None:
    found = Checkpoint.open(ComfyFolder(comfy(tmp_path, diffusers, prefix)))
    wanted, sampler = (Sampler.load(one, CPU) for one in (Checkpoint.open(diffusers), found))
    same(wanted.transformer, sampler.transformer)
    first, second = (settings(one.transformer.config) for one in (wanted, sampler))
    assert first == second
    assert wanted._schedule == sampler._schedule
    assert wanted.geometry == sampler.geometry


def test_prompts_and_pictures_are_the_same(models, diffusers) -> None:
    found, wanted = Checkpoint.open(ComfyFolder(models)), Checkpoint.open(diffusers)
    assert torch.equal(embed(found), embed(wanted))
    first, second = (
        settings(PromptEncoder.load(one, CPU).model.config.to_dict()) for one in (wanted, found)
    )
    assert first == second
    vaes = [ImageVae.load(one, CPU) for one in (wanted, found)]
    same(*vaes)
    pixels = torch.rand(1, 3, 32, 48) * 2 - 1
    assert torch.equal(*(vae.decode(vae.encode(pixels)) for vae in vaes))


def test_the_marker_of_2511_and_fp8_are_read_here_too(models) -> None:
    quantise(models / TEXT, "comfy_quant")
    quantise(models / TRANSFORMER, "scale_weight")
    weights = load_file(models / TRANSFORMER)
    weights["__index_timestep_zero__"] = torch.zeros(0)
    marked = {f"model.diffusion_model.{name}": one for name, one in weights.items()}
    save_file(marked, models / TRANSFORMER)
    checkpoint = Checkpoint.open(ComfyFolder(models))
    assert Sampler.load(checkpoint, CPU).transformer.zero_cond_t
    assert embed(checkpoint).isfinite().all()
    assert checkpoint.weights("text_encoder").is_float8


def test_digests_cover_the_used_files_alone(models) -> None:
    def digests() -> dict[Stage, str]:
        return {stage: checkpoint.digest(stage) for stage in STAGE_PARTS}

    checkpoint = Checkpoint.open(ComfyFolder(models))
    before = digests()
    (models / "vae" / "another.safetensors").write_bytes(b"not read")
    assert digests() == before
    (models.parent / "comfy/text_encoders/qwen25_tokenizer/merges.txt").write_text("a b")
    changed = {stage for stage, digest in digests().items() if digest != before[stage]}
    assert changed == {Stage.TEXT_ENCODER}
    again = Checkpoint.open(parse_source(checkpoint.location))
    assert again.digest(Stage.DECODING) == before[Stage.DECODING]
    assert again.location == checkpoint.location


def test_sources_are_read_as_written() -> None:
    text = "comfyui:/a b/models?transformer=sub/x.safetensors&tokenizer=hf://org/name"
    assert str(parse_source(text)) == text
    assert parse_source("comfyui:models") == ComfyFolder(Path("models"))
    for bad in ("comfyui:", "comfyui:m?lora=x", "comfyui:m?vae=", "comfyui:m?vae=a&vae=b"):
        with pytest.raises(SettingsError, match="write comfyui:FOLDER"):
            parse_source(bad)


def refused(models: Path, **choices: str) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        Sampler.load(Checkpoint.open(ComfyFolder(models, tuple(choices.items()))), CPU)
    assert str(models.parent) not in caught.value.message.replace(choices.get("tokenizer", "-"), "")
    return caught.value


def test_a_part_is_chosen_by_name_where_there_are_several(models, diffusers) -> None:
    other = "qwen_2.5_vl_7b_fp8_scaled.safetensors"
    shutil.copy(models / TEXT, models / "text_encoders" / other)
    error = refused(models)
    assert error.reason is Reason.CHECKPOINT_UNSUPPORTED
    for word in (other, Path(TEXT).name, "comfyui:FOLDER?text_encoder=NAME"):
        assert word in error.message
    Checkpoint.open(ComfyFolder(models, (("text_encoder", other),)))
    assert "has no x.safetensors" in refused(models, text_encoder="x.safetensors").message


def test_a_file_that_does_not_say_which_model_it_is_needs_a_pipeline(models) -> None:
    (models / TRANSFORMER).rename(models / "diffusion_models" / "qwen_image_edit_fp8.safetensors")
    error = refused(models)
    assert error.reason is Reason.CHECKPOINT_UNSUPPORTED
    assert "class_name=QwenImageEditPlusPipeline for 2509 and 2511" in error.message
    assert "class_name=QwenImageEditPipeline for the first one" in error.message
    assert "the engine computes" in refused(models, class_name="QwenImagePipeline").message
    first, plus = (
        Checkpoint.open(ComfyFolder(models, (("class_name", name),)))
        for name in ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")
    )
    assert first.family.pipeline == "QwenImageEditPipeline"
    assert first.digest(Stage.SAMPLING) != plus.digest(Stage.SAMPLING)
    assert Checkpoint.open(parse_source(first.location)).family.pipeline == first.family.pipeline


def test_a_name_with_2511_needs_the_marker_or_a_choice(models) -> None:
    """Numbers within a date are no model's."""
    folder = models / "diffusion_models"
    dated = (models / TRANSFORMER).rename(folder / "edit_20250915.safetensors")
    assert "does not say which edit model" in refused(models).message
    dated.rename(folder / "qwen_edit_2511.safetensors")
    assert "add zero_cond_t=true if it is one" in refused(models).message
    assert "takes true or false" in refused(models, zero_cond_t="yes").message
    chosen = {
        value: Checkpoint.open(ComfyFolder(models, (("zero_cond_t", value),)))
        for value in ("true", "false")
    }
    assert chosen["true"].config("transformer")["zero_cond_t"] is True
    assert chosen["false"].config("transformer")["zero_cond_t"] is False
    assert Sampler.load(chosen["true"], CPU).transformer.config.zero_cond_t
    assert len({one.digest(Stage.SAMPLING) for one in chosen.values()}) == 2
    again = Checkpoint.open(parse_source(chosen["true"].location))
    assert again.config("transformer")["zero_cond_t"] is True


def test_files_in_linked_folders_are_found(models, tmp_path) -> None:
    moved = (models / "vae").rename(tmp_path / "elsewhere")
    (models / "vae").mkdir()
    (models / "vae" / "qwen").symlink_to(moved)
    (moved / "loop").symlink_to(models / "vae")
    assert Checkpoint.open(ComfyFolder(models)).files.vae.name == "qwen_image_vae.safetensors"


def test_what_is_missing_is_named(models, tmp_path, diffusers) -> None:
    shutil.rmtree(models.parent / "comfy")
    error = refused(models)
    assert error.reason is Reason.CHECKPOINT_NOT_FOUND
    assert "no tokenizer" in error.message
    assert "tokenizer=FOLDER" in error.message
    Checkpoint.open(ComfyFolder(models, (("tokenizer", str(diffusers)),)))
    (models / VAE).unlink()
    assert "vae/ of models has no qwen_image_vae" in refused(models).message
    assert "no such folder" in refused(tmp_path / "none").message


def edit(path: Path, **changes: torch.Tensor | None) -> None:
    found = load_file(path)
    for name, value in changes.items():
        found.pop(name) if value is None else found.update({name: value})
    save_file(found, path)


def test_every_tensor_is_used_or_refused_both_ways(models) -> None:
    edit(models / TRANSFORMER, extra=torch.ones(1))
    assert "extra" in refused(models).message
    edit(models / TRANSFORMER, extra=None, **{"proj_out.bias": None})
    assert "proj_out.bias" in refused(models).message
    edit(models / VAE, **{"decoder.upsamples.4.other": torch.ones(1)})
    checkpoint = Checkpoint.open(ComfyFolder(models))
    with pytest.raises(SettingsError, match=r"decoder.*4\.other"):
        ImageVae.load(checkpoint, CPU)
    edit(models / TEXT, **{"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(SettingsError, match=r"lacks.*layers\.1\.mlp\.up_proj"):
        PromptEncoder.load(Checkpoint.open(ComfyFolder(models)), CPU)


@pytest.mark.parametrize(
    ("name", "shape", "word"),
    [
        ("transformer_blocks.0.attn.norm_q.weight", (64,), "the width of a head is 64"),
        ("img_in.weight", (128,), "img_in.weight has the shape"),
        ("txt_in.weight", None, "lacks txt_in.weight"),
    ],
)
def test_what_shapes_cannot_tell_is_refused(models, name, shape, word) -> None:
    edit(models / TRANSFORMER, **{name: None if shape is None else torch.ones(shape)})
    assert word in refused(models).message


def test_a_plain_path_to_it_is_answered_with_its_name(models) -> None:
    with pytest.raises(SettingsError, match="comfyui:models"):
        Checkpoint.open(models)


async def test_the_mesh_draws_the_same_picture(models, diffusers, tmp_path) -> None:
    person, garment = (Image.new("RGB", (64, 64), one) for one in ("#c81e5a", "#0a825a"))
    drawn = []
    for source in (str(diffusers), f"comfyui:{models}"):
        async with embedded_mesh(checkpoint=source) as target, vtryon.Client(target) as client:
            result = await client.try_on(
                person, garment, "a red shirt", steps=1, seed=3, width=64, height=64
            )
            drawn.append(result.picture.to_pil().tobytes())
    assert drawn[0] == drawn[1]
