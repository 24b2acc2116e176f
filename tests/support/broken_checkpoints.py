"""Checkpoints that must not load: how each is made of a whole one, and what is said of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

Break = Callable[[Path], Path | None]
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"


class Broken(NamedTuple):
    """A way to break a checkpoint: it gives another path where that is what is to be named."""

    make: Break
    reason: str
    words: tuple[str, ...]


def change(file: str, *keys: str, to: Any = None, drop: bool = False) -> Break:
    """Set a field of a JSON file, or take it out."""

    def make(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_bytes())
        place = content
        for key in keys[:-1]:
            place = place[key]
        if drop:
            del place[keys[-1]]
        else:
            place[keys[-1]] = to
        path.write_text(json.dumps(content))

    return make


def tensors(file: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    """Edit the tensors of a file."""

    def make(folder: Path) -> None:
        found = load_file(folder / file)
        edit(found)
        save_file(found, folder / file, metadata={"format": "pt"})

    return make


def add(file: str, name: str, value: torch.Tensor | None = None) -> Break:
    """Add a tensor to a file."""
    return tensors(
        file, lambda found: found.update({name: torch.ones(1) if value is None else value})
    )


def write(file: str, content: bytes | str = b"x") -> Break:
    """Write a file."""

    def make(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(data)

    return make


def rename(file: str, to: str) -> Break:
    """Give a file another name."""
    return lambda folder: (folder / file).rename(folder / to) and None


def remove(file: str) -> Break:
    """Take a file or folder away."""

    def make(folder: Path) -> None:
        path = folder / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return make


def shard(file: str, *, without: int | None = None, extra: bool = False) -> Break:
    """Cut weights into two shards with an index; `without` takes one of them away."""

    def make(folder: Path) -> None:
        path = folder / file
        found = load_file(path)
        names, stem = sorted(found), path.name.removesuffix(".safetensors")
        where = {}
        for number, part in enumerate((names[::2], names[1::2]), 1):
            name = f"{stem}-0000{number}-of-00002.safetensors"
            if number != without:
                save_file({one: found[one] for one in part}, path.with_name(name))
            where |= dict.fromkeys(part, name)
        index = {"metadata": {"total_size": 1}, "weight_map": where}
        path.with_name(f"{stem}.safetensors.index.json").write_text(json.dumps(index))
        if not extra:
            path.unlink()

    return make


def both(*steps: Break) -> Break:
    """Do several."""

    def make(folder: Path) -> None:
        for step in steps:
            step(folder)

    return make


def pickled(folder: Path) -> None:
    found = load_file(folder / TRANSFORMER)
    (folder / TRANSFORMER).unlink()
    torch.save(found, folder / "transformer" / "diffusion_pytorch_model.bin")


def lora(folder: Path) -> None:
    save_file(
        {"transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(4, 4)},
        folder / "transformer" / "4-steps.safetensors",
    )


def as_blocks_of_float8(found: dict[str, torch.Tensor]) -> None:
    name = "transformer_blocks.0.attn.to_q.weight"
    found[name] = found[name].to(torch.float8_e4m3fn)
    found[f"{name}_scale"] = torch.ones(128, 4)


def cut(file: str) -> Break:
    """Keep the first half of a file."""

    def make(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: len(data) // 2])

    return make


def elsewhere(name: str, content: bytes = b"GGUF") -> Break:
    """Name a file beside the checkpoint in its place."""

    def make(folder: Path) -> Path:
        path = folder.with_name(name)
        path.write_bytes(content)
        return path

    return make


def hub_cache(folder: Path) -> Path:
    snapshots = folder.with_name("models--org--name") / "snapshots"
    snapshots.mkdir(parents=True)
    shutil.move(folder, snapshots / "0a1b")
    return snapshots.parent


def single_file_folder(folder: Path) -> Path:
    other = folder.with_name("comfy")
    other.mkdir()
    shutil.copy(folder / TRANSFORMER, other / "qwen_image_edit_fp8.safetensors")
    return other


def other_tokenizer(folder: Path) -> None:
    path = folder / "processor" / "tokenizer.json"
    content = json.loads(path.read_bytes())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    path.write_text(json.dumps(content))


NOT_FOUND, UNSAFE = "CHECKPOINT_NOT_FOUND", "CHECKPOINT_UNSAFE"
CORRUPT, UNSUPPORTED = "CHECKPOINT_CORRUPT", "CHECKPOINT_UNSUPPORTED"
LAYERS = "transformer/config.json"
QUANTISED = {"quant_method": "bitsandbytes", "load_in_4bit": True}
INDEX = "model_index.json"

BROKEN: dict[str, Broken] = {
    # What is named is no folder in diffusers layout.
    "no folder": Broken(lambda folder: folder / "no", NOT_FOUND, ("no such folder",)),
    "a hub's name": Broken(lambda _: Path("org/name"), NOT_FOUND, ("org/name", "hf://org/name")),
    "a GGUF file": Broken(elsewhere("q4.gguf"), UNSUPPORTED, ("q4.gguf", "GGUF")),
    "a single file": Broken(
        elsewhere("fp8.safetensors"), UNSUPPORTED, ("fp8.safetensors", "diffusers layout")
    ),
    "a pickle": Broken(elsewhere("model.ckpt"), UNSAFE, ("model.ckpt", "convert")),
    "the hub's cache": Broken(hub_cache, NOT_FOUND, ("snapshots/0a1b",)),
    "a folder of a single file": Broken(
        single_file_folder, NOT_FOUND, ("qwen_image_edit_fp8.safetensors", "diffusers layout")
    ),
    # Its index.
    "an index that is no JSON": Broken(write(INDEX, "{"), CORRUPT, ("model_index.json",)),
    "a model that edits nothing": Broken(
        change(INDEX, "_class_name", to="QwenImagePipeline"),
        UNSUPPORTED,
        ("QwenImagePipeline", "QwenImageEditPipeline"),
    ),
    "no pipeline class": Broken(
        change(INDEX, "_class_name", drop=True), UNSUPPORTED, ("no pipeline class",)
    ),
    "another class": Broken(
        change(INDEX, "transformer", to=["diffusers", "FluxTransformer2DModel"]),
        UNSUPPORTED,
        ("FluxTransformer2DModel",),
    ),
    "another tokenizer": Broken(
        change(INDEX, "tokenizer", to=["transformers", "LlamaTokenizer"]),
        UNSUPPORTED,
        ("LlamaTokenizer", "Qwen2TokenizerFast"),
    ),
    "a part too many": Broken(
        change(INDEX, "controlnet", to=["diffusers", "QwenImageControlNetModel"]),
        UNSUPPORTED,
        ("controlnet",),
    ),
    "an entry that is no list": Broken(change(INDEX, "vae", to="vae"), CORRUPT, ("vae",)),
    "a part missing": Broken(remove("vae"), NOT_FOUND, ("vae/",)),
    # Files that nothing would use.
    "a LoRA beside the weights": Broken(lora, UNSUPPORTED, ("4-steps.safetensors", "LoRA")),
    "a LoRA in the root": Broken(
        write("pytorch_lora_weights.safetensors"),
        UNSUPPORTED,
        ("pytorch_lora_weights.safetensors", "LoRA"),
    ),
    "a LoRA's configuration": Broken(
        write("transformer/adapter_config.json"), UNSUPPORTED, ("adapter_config.json", "LoRA")
    ),
    "GGUF beside the weights": Broken(
        write("transformer/q4.gguf"), UNSUPPORTED, ("transformer/q4.gguf", "GGUF")
    ),
    "a pickle beside the weights": Broken(
        write("vae/diffusion_pytorch_model.bin"), UNSAFE, ("vae/diffusion_pytorch_model.bin",)
    ),
    "an unknown file": Broken(
        write("text_encoder/bias.npz"), UNSUPPORTED, ("text_encoder/bias.npz",)
    ),
    "an unknown folder": Broken(write("loras/a.txt"), UNSUPPORTED, ("loras/",)),
    # Weights in another layout.
    "pickled weights": Broken(pickled, UNSAFE, ("diffusion_pytorch_model.bin", "convert")),
    "a variant": Broken(
        rename(TRANSFORMER, "transformer/diffusion_pytorch_model.fp16.safetensors"),
        UNSUPPORTED,
        ("variant fp16", "diffusion_pytorch_model.fp16.safetensors"),
    ),
    "a variant beside": Broken(
        lambda folder: (
            shutil.copy(folder / VAE, folder / "vae/diffusion_pytorch_model.fp16.safetensors")
            and None
        ),
        UNSUPPORTED,
        ("diffusion_pytorch_model.fp16.safetensors",),
    ),
    "a missing shard": Broken(
        shard(TRANSFORMER, without=2),
        NOT_FOUND,
        ("diffusion_pytorch_model-00002-of-00002.safetensors",),
    ),
    "a missing shard of the text encoder": Broken(
        shard(TEXT, without=1), NOT_FOUND, ("model-00001-of-00002.safetensors",)
    ),
    "weights twice": Broken(shard(TRANSFORMER, extra=True), UNSUPPORTED, ("twice",)),
    "no weights": Broken(remove(VAE), NOT_FOUND, ("vae", "safetensors")),
    # Damaged weights.
    "cut off": Broken(cut(TRANSFORMER), CORRUPT, (TRANSFORMER,)),
    "cut off in the text encoder": Broken(cut(TEXT), CORRUPT, (TEXT,)),
    "a tensor missing": Broken(
        tensors(TRANSFORMER, lambda found: found.pop("proj_out.bias")), CORRUPT, ("proj_out.bias",)
    ),
    "a tensor of another shape": Broken(
        tensors(TRANSFORMER, lambda found: found.update({"proj_out.bias": torch.zeros(3)})),
        CORRUPT,
        ("proj_out.bias", "(3,)"),
    ),
    "a tensor of the text encoder missing": Broken(
        tensors(TEXT, lambda found: found.pop(min(found))), CORRUPT, ("text_encoder lacks",)
    ),
    "the VAE's other half missing": Broken(
        tensors(VAE, lambda found: found.pop("decoder.conv_out.bias")),
        CORRUPT,
        ("decoder.conv_out.bias",),
    ),
    # Tensors that would be passed over.
    "an unexpected tensor of the VAE": Broken(add(VAE, "encoder.extra"), UNSUPPORTED, ("extra",)),
    "an unexpected tensor": Broken(
        add(TRANSFORMER, "shift.weight"), UNSUPPORTED, ("shift.weight",)
    ),
    "an unexpected tensor of the text encoder": Broken(
        add(TEXT, "model.language_model.layers.7.bias"), UNSUPPORTED, ("layers.7.bias",)
    ),
    "fewer layers than the file has": Broken(
        change(LAYERS, "num_layers", to=1),
        UNSUPPORTED,
        ("transformer_blocks.1.", "number of layers"),
    ),
    "more layers than the file has": Broken(
        change(LAYERS, "num_layers", to=9), CORRUPT, ("transformer_blocks.6.",)
    ),
    "fewer layers of the text encoder": Broken(
        both(
            change("text_encoder/config.json", "text_config", "num_hidden_layers", to=1),
            change("text_encoder/config.json", "text_config", "layer_types", drop=True),
        ),
        UNSUPPORTED,
        ("layers.1.",),
    ),
    "scaled fp8": Broken(
        add(TRANSFORMER, "transformer_blocks.0.attn.to_q.scale_weight"),
        UNSUPPORTED,
        ("transformer_blocks.0.attn.to_q.scale_weight", "bf16"),
    ),
    "scaled fp8 of the text encoder": Broken(
        add(TEXT, "model.layers.0.mlp.up_proj.weight_scale"),
        UNSUPPORTED,
        ("weight_scale", "bf16"),
    ),
    "comfy_quant": Broken(
        add(TRANSFORMER, "img_in.comfy_quant", torch.zeros(4, dtype=torch.uint8)),
        UNSUPPORTED,
        ("img_in.comfy_quant",),
    ),
    "fp8 scaled by blocks": Broken(
        tensors(TRANSFORMER, as_blocks_of_float8), UNSUPPORTED, ("to_q.weight_scale", "(128, 4)")
    ),
    "whole numbers": Broken(
        add(TRANSFORMER, "img_in.weight", torch.zeros(128, 64, dtype=torch.int8)),
        UNSUPPORTED,
        ("img_in.weight", "I8"),
    ),
    "a LoRA among the weights": Broken(
        add(TRANSFORMER, "transformer_blocks.0.attn.to_q.lora_A.weight"), UNSUPPORTED, ("lora_A",)
    ),
    "ComfyUI's names": Broken(
        add(TRANSFORMER, "model.diffusion_model.img_in.weight"), UNSUPPORTED, ("ComfyUI",)
    ),
    # Configurations.
    "no configuration": Broken(remove(LAYERS), CORRUPT, (LAYERS,)),
    "a configuration that is no JSON": Broken(write("vae/config.json", "{"), CORRUPT, ("vae",)),
    "a field of the wrong type": Broken(
        change(LAYERS, "num_layers", to="six"), CORRUPT, ("transformer",)
    ),
    "an unknown field": Broken(
        change(LAYERS, "use_magic", to=True), UNSUPPORTED, (LAYERS, "use_magic")
    ),
    "an unknown field of the VAE": Broken(
        change("vae/config.json", "is_residual", to=True), UNSUPPORTED, ("is_residual",)
    ),
    "an unknown field of the text encoder": Broken(
        change("text_encoder/config.json", "text_config", "logit_scale", to=2),
        UNSUPPORTED,
        ("text_config", "logit_scale"),
    ),
    "an unknown field of the vision tower": Broken(
        change("text_encoder/config.json", "vision_config", "mlp_ratio", to=4),
        UNSUPPORTED,
        ("vision_config", "mlp_ratio"),
    ),
    "a text field twice": Broken(
        change("text_encoder/config.json", "rms_norm_eps", to=0.5), CORRUPT, ("rms_norm_eps", "0.5")
    ),
    "an unknown field of the scheduler": Broken(
        change(SCHEDULER, "use_flow_sigmas", to=True), UNSUPPORTED, ("use_flow_sigmas",)
    ),
    "an unknown field of the processor": Broken(
        change("processor/processor_config.json", "image_processor", "sharpen", to=1),
        UNSUPPORTED,
        ("sharpen",),
    ),
    "pictures cut at the centre": Broken(
        change("processor/processor_config.json", "image_processor", "do_center_crop", to=True),
        UNSUPPORTED,
        ("do_center_crop",),
    ),
    "an unknown field of the tokenizer": Broken(
        change("tokenizer/tokenizer_config.json", "lower_case", to=True),
        UNSUPPORTED,
        ("lower_case",),
    ),
    "another class in the configuration": Broken(
        change(LAYERS, "_class_name", to="FluxTransformer2DModel"),
        UNSUPPORTED,
        ("FluxTransformer2DModel",),
    ),
    "another text encoder": Broken(
        change("text_encoder/config.json", "architectures", to=["Qwen3VLForCausalLM"]),
        UNSUPPORTED,
        ("Qwen3VLForCausalLM",),
    ),
    "bitsandbytes": Broken(
        change(LAYERS, "quantization_config", to=QUANTISED),
        UNSUPPORTED,
        (LAYERS, "bitsandbytes", "bf16"),
    ),
    "torchao in the text encoder": Broken(
        change("text_encoder/config.json", "quantization_config", to={"quant_method": "torchao"}),
        UNSUPPORTED,
        ("text_encoder/config.json", "torchao"),
    ),
    "2511's marker with another configuration": Broken(
        add(TRANSFORMER, "__index_timestep_zero__", torch.zeros(1)),
        CORRUPT,
        ("zero_cond_t", "__index_timestep_zero__"),
    ),
    "guidance that is embedded": Broken(
        change(LAYERS, "guidance_embeds", to=True), UNSUPPORTED, ("guidance_embeds",)
    ),
    "another patch": Broken(change(LAYERS, "patch_size", to=1), UNSUPPORTED, ("patch_size",)),
    "rotary axes that don't sum up": Broken(
        change(LAYERS, "axes_dims_rope", to=[8, 8, 8]), CORRUPT, ("axes_dims_rope",)
    ),
    # Schedulers.
    "no largest shift": Broken(change(SCHEDULER, "max_shift", to=None), CORRUPT, ("max_shift",)),
    "lengths that are equal": Broken(
        change(SCHEDULER, "max_image_seq_len", to=256), CORRUPT, ("max_image_seq_len",)
    ),
    "beta sigmas": Broken(
        change(SCHEDULER, "use_beta_sigmas", to=True), UNSUPPORTED, ("use_beta_sigmas", "scipy")
    ),
    "a stochastic scheduler": Broken(
        change(SCHEDULER, "stochastic_sampling", to=True), UNSUPPORTED, ("stochastic_sampling",)
    ),
    "inverted noise levels": Broken(
        change(SCHEDULER, "invert_sigmas", to=True), UNSUPPORTED, ("invert_sigmas",)
    ),
    "other timesteps": Broken(
        change(SCHEDULER, "num_train_timesteps", to=500), UNSUPPORTED, ("num_train_timesteps",)
    ),
    "two schedules at once": Broken(
        both(
            change(SCHEDULER, "use_karras_sigmas", to=True),
            change(SCHEDULER, "use_exponential_sigmas", to=True),
        ),
        CORRUPT,
        ("scheduler",),
    ),
    "noise levels that rise": Broken(
        change(SCHEDULER, "shift_terminal", to=2.0), CORRUPT, ("noise levels",)
    ),
    # Parts of different models.
    "another picture token": Broken(
        change("text_encoder/config.json", "image_token_id", to=3), CORRUPT, ("<|image_pad|>",)
    ),
    "another patch of pictures": Broken(
        change("processor/processor_config.json", "image_processor", "patch_size", to=16),
        CORRUPT,
        ("patch_size", "16"),
    ),
    "two tokenizers": Broken(other_tokenizer, CORRUPT, ("tokenizer.json",)),
    "no tokenizer": Broken(remove("tokenizer/tokenizer.json"), CORRUPT, ("tokenizer",)),
    "latents of the wrong count": Broken(
        change("vae/config.json", "latents_std", to=[1.0]), CORRUPT, ("latents_std",)
    ),
    "latents that are divided by nothing": Broken(
        change("vae/config.json", "latents_std", to=[0.0] * 16), CORRUPT, ("latents_std",)
    ),
    "a geometry that is none": Broken(
        write("geometry.json", '{"fit": "squeeze"}'), CORRUPT, ("geometry.json", "fit")
    ),
    "digests that are none": Broken(write("digests.json", "[]"), CORRUPT, ("digests.json",)),
}
