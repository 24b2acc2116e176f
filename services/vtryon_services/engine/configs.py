"""Configurations of parts: every field is used, known to have no effect, or rejected.

The libraries warn about a field that they don't know, or store it without using it. Here the fields
are those of the class that reads them, and a short list of further ones with the reason why they
have no effect.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageTransformer2DModel,
)
from transformers import PreTrainedConfig, Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)

from vtryon_services.engine.refusals import corrupt, few, unsupported

Config = dict[str, Any]
# Field: why it changes no result.
_BOOKKEEPING = {
    "_class_name": "compared with model_index.json",
    "_diffusers_version": "bookkeeping",
    "_name_or_path": "bookkeeping",
    "_commit_hash": "bookkeeping",
    "_from_model_config": "bookkeeping",
    "transformers_version": "bookkeeping",
    "auto_map": "code is never run; the classes are those of the libraries",
    "trust_remote_code": "code is never run; the classes are those of the libraries",
}
_OF_TRANSFORMER = {"pooled_projection_dim": "of an older class, which never used it"}
_OF_LANGUAGE = {
    "torch_dtype": "the service's setting decides the element type",
    "use_cache": "one forward, nothing is generated",
    "output_attentions": "not asked for",
    "torchscript": "not asked for",
    "model_type": "compared with the class",
    "vision_token_id": "no token of the template",
    "rope_theta": "read by the class into rope_parameters",
    "rope_scaling": "read by the class into rope_parameters",
    "tie_word_embeddings": "logits are never computed",
    "vision_start_token_id": "a token of the whole model's",
    "vision_end_token_id": "a token of the whole model's",
    "image_token_id": "a token of the whole model's",
    "video_token_id": "a token of the whole model's",
    "in_chans": "compared with in_channels",
    "spatial_patch_size": "compared with patch_size",
    "bos_token_id": "nothing is generated",
    "eos_token_id": "nothing is generated",
    "pad_token_id": "padding is masked",
}
_OF_PICTURES = {
    "image_processor_type": "compared with the class",
    "processor_class": "compared with the class",
    "feature_extractor_type": "an older name of image_processor_type",
    "data_format": "of tensors that the class makes as it needs them",
    "input_data_format": "pictures come as PIL images",
    "default_to_square": "sizes are by area",
    "device": "pictures are prepared on the CPU",
    "return_tensors": "asked for by the caller",
    "disable_grouping": "of the tensor backend",
    "size_divisor": "of other classes, and unset",
}
_READ_OF_PICTURES = {
    *("do_convert_rgb", "do_resize", "size", "resample", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "min_pixels", "max_pixels", "patch_size"),
    *("temporal_patch_size", "merge_size"),
}
# Set to a value, they ask for what Qwen2-VL's processor does not do.
_UNSET_OF_PICTURES = {"crop_size", "do_center_crop", "do_pad", "pad_size", "image_seq_length"}
_TOKENIZER_CLASSES = {"Qwen2Tokenizer", "Qwen2TokenizerFast"}
_PICTURE_CLASSES = {
    *("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil"),
}
_PROCESSOR_CLASSES = {"Qwen2VLProcessor", "Qwen2_5_VLProcessor"}
_OF_TOKENIZER = {
    *("add_bos_token", "add_prefix_space", "added_tokens_decoder", "additional_special_tokens"),
    *("backend", "bos_token", "chat_template", "clean_up_tokenization_spaces", "eos_token"),
    *("errors", "extra_special_tokens", "is_local", "local_files_only", "model_max_length"),
    *("name_or_path", "pad_token", "padding_side", "processor_class", "special_tokens_map_file"),
    *("split_special_tokens", "tokenizer_class", "tokenizer_file", "truncation_side", "unk_token"),
    *("cls_token", "sep_token", "mask_token", "image_token", "video_token", "add_eos_token"),
    *("model_input_names", "vision_start_token", "vision_end_token"),
}


def read_json(path: Path, label: str) -> Config:
    """Read a JSON object.

    Raises:
        SettingsError: it can't be read, or is something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise corrupt(f"{label} is no JSON") from error
    if not isinstance(content, dict):
        raise corrupt(f"{label} is no JSON object")
    return content


def read_config(part: str, folder: Path) -> Config:
    """Read a part's configuration, and check every field of it.

    Raises:
        SettingsError: a field is unknown, or its value asks for an unsupported computation.
    """
    if part == "processor":
        return _read_processor(folder)
    if part == "tokenizer":
        return _read_tokenizer(folder)
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    label = f"{part}/{name}"
    if not (folder / name).is_file():
        raise corrupt(f"{label} is missing")
    config = read_json(folder / name, label)
    if "quantization_config" in config:
        raise unsupported(_quantised(label, config["quantization_config"]))
    _CHECKS[part](label, config)
    return config


def _quantised(label: str, config: object) -> str:
    method = config.get("quant_method") if isinstance(config, Mapping) else None
    return (
        f"{label} has a quantization_config ({method or 'of no named method'}); quantised weights "
        "are not computed with: dequantise the part to bf16 (`model.dequantize()` of its library, "
        "then `save_pretrained`), or take the bf16 weights"
    )


def _of_class(owner: type, named: str, more: Mapping[str, str]) -> Callable[[str, Config], None]:
    known = signature_defaults(owner).keys()

    def check(label: str, config: Config) -> None:
        if (found := config.get("_class_name", named)) != named:
            raise unsupported(f"{label} is of a {found}; the engine computes {named}")
        refuse_unknown(label, config, known | more.keys() | _BOOKKEEPING.keys())

    return check


def signature_defaults(owner: type) -> Config:
    """Return a class's defaults for fields missing in a configuration."""
    parameters = inspect.signature(owner).parameters.values()
    return {one.name: one.default for one in parameters}


def refuse_unknown(label: str, config: Config, known: set[str]) -> None:
    """Refuse fields that nothing reads.

    Raises:
        SettingsError: naming them.
    """
    if unknown := sorted(config.keys() - known):
        raise unsupported(
            f"{label} has fields that are not known here, and would be passed over: "
            f"{few(unknown)}. Take them out if the model does not need them"
        )


def _check_text_encoder(label: str, config: Config) -> None:
    named = config.get("architectures") or []
    if named and "Qwen2_5_VLForConditionalGeneration" not in named:
        raise unsupported(
            f"{label} is of {named}; the engine computes Qwen2_5_VLForConditionalGeneration"
        )
    text, vision = config.get("text_config"), config.get("vision_config")
    whole = _fields_of(Qwen2_5_VLConfig) | _fields_of(Qwen2_5_VLTextConfig)
    _check_language(label, config, whole, {"qwen2_5_vl"})
    if isinstance(text, dict):
        _check_language(
            f"{label}, text_config",
            text,
            _fields_of(Qwen2_5_VLTextConfig),
            {"qwen2_5_vl_text", "qwen2_5_vl"},
        )
        _check_once(label, config, text)
    if isinstance(vision, dict):
        _check_language(
            f"{label}, vision_config",
            vision,
            _fields_of(Qwen2_5_VLVisionConfig),
            {"qwen2_5_vl_vision", "qwen2_5_vl"},
        )
        for older, name in (("in_chans", "in_channels"), ("spatial_patch_size", "patch_size")):
            if older in vision and vision.get(name, vision[older]) != vision[older]:
                raise corrupt(f"{label}: {older} is {vision[older]}, and {name} {vision[name]}")


def _check_language(label: str, config: Config, known: set[str], kinds: set[str]) -> None:
    if "quantization_config" in config:
        raise unsupported(_quantised(label, config["quantization_config"]))
    if config.get("model_type", next(iter(kinds))) not in kinds:
        raise unsupported(f"{label} is of a {config['model_type']}; the engine computes qwen2_5_vl")
    refuse_unknown(label, config, known | _OF_LANGUAGE.keys() | _BOOKKEEPING.keys())


def _check_once(label: str, config: Config, text: Config) -> None:
    """Refuse a text field that stands outside `text_config` too, with another value.

    The class reads the inner one alone. Fields of the sliding window don't matter without one.
    """
    ignored = {"sliding_window", "max_window_layers", "layer_types", *_fields_of(PreTrainedConfig)}
    ignored |= _OF_LANGUAGE.keys() - {"rope_theta"} | {"model_type", "architectures"}
    for name in sorted((config.keys() & text.keys()) - ignored):
        if config[name] != text[name]:
            raise corrupt(f"{label}: {name} is {config[name]}, and {text[name]} in text_config")


def _fields_of(config: type) -> set[str]:
    assert is_dataclass(config)
    return {field.name for field in fields(config)} | {"rope_parameters"}


def _read_processor(folder: Path) -> Config:
    """Read the picture half, of the file that the library reads."""
    found: dict[str, Config] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            label = f"processor/{name}"
            content = read_json(folder / name, label)
            found[label] = _picture_half(label, content)
    pictures = {label: config for label, config in found.items() if config}
    if not pictures:
        raise corrupt("processor has no preprocessor_config.json and no processor_config.json")
    for label, config in pictures.items():
        _check_pictures(label, config)
    (first, config), *others = pictures.items()
    for label, other in others:
        for name in sorted(_READ_OF_PICTURES & config.keys() & other.keys()):
            if config[name] != other[name]:
                raise corrupt(
                    f"{name} is {config[name]} in {first}, and {other[name]} in {label}: "
                    "remove one of the two files"
                )
    return pictures.get("processor/processor_config.json", config)


def _picture_half(label: str, content: Config) -> Config:
    """Extract the picture settings from a file that may have more."""
    if content.get("processor_class", "Qwen2VLProcessor") not in _PROCESSOR_CLASSES:
        raise unsupported(
            f"{label} is of a {content['processor_class']}; the engine computes Qwen2VLProcessor"
        )
    if label.endswith("/preprocessor_config.json"):
        return content
    known = {"image_processor", "video_processor", "processor_class", "chat_template"}
    if "image_processor" in content:
        refuse_unknown(label, content, known | _BOOKKEEPING.keys())
        half = content["image_processor"]
        if not isinstance(half, dict):
            raise corrupt(f"{label}: image_processor is no JSON object")
        return half
    return {} if content.keys() <= known | _BOOKKEEPING.keys() else content


def _check_pictures(label: str, config: Config) -> None:
    kind = config.get("image_processor_type", "Qwen2VLImageProcessor")
    if kind not in _PICTURE_CLASSES:
        raise unsupported(f"{label} is of a {kind}; the engine computes Qwen2VLImageProcessor")
    known = _READ_OF_PICTURES | _UNSET_OF_PICTURES | _OF_PICTURES.keys() | _BOOKKEEPING.keys()
    refuse_unknown(label, config, known)
    if asked := sorted(name for name in _UNSET_OF_PICTURES if config.get(name)):
        raise unsupported(f"{label} sets {few(asked)}, which Qwen2-VL's processor does not do")


def _read_tokenizer(folder: Path) -> Config:
    label = "tokenizer/tokenizer_config.json"
    if not (folder / "tokenizer_config.json").is_file():
        raise corrupt(f"{label} is missing")
    config = read_json(folder / "tokenizer_config.json", label)
    kind = config.get("tokenizer_class", "Qwen2Tokenizer")
    if kind not in _TOKENIZER_CLASSES:
        raise unsupported(f"{label} is of a {kind}; the engine computes Qwen2Tokenizer")
    refuse_unknown(label, config, _OF_TOKENIZER | _BOOKKEEPING.keys())
    two = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    if not two and not (folder / "tokenizer.json").is_file():
        raise corrupt("tokenizer has neither tokenizer.json nor vocab.json and merges.txt")
    return config


_CHECKS: dict[str, Callable[[str, Config], None]] = {
    "vae": _of_class(AutoencoderKLQwenImage, "AutoencoderKLQwenImage", {}),
    "transformer": _of_class(
        QwenImageTransformer2DModel, "QwenImageTransformer2DModel", _OF_TRANSFORMER
    ),
    "scheduler": _of_class(FlowMatchEulerDiscreteScheduler, "FlowMatchEulerDiscreteScheduler", {}),
    "text_encoder": _check_text_encoder,
}
