"""Whether tokenizer, picture processor and text encoder fit the prompt's template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import Qwen2_5_VLConfig, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.refusals import corrupt, library_errors, unsupported


def check_together(
    checkpoint: Checkpoint,
    config: Qwen2_5_VLConfig,
    tokenizer: Qwen2Tokenizer,
    processor: Qwen2VLImageProcessorPil,
) -> None:
    """Refuse parts that belong to different models: they would compute something, but wrongly.

    Raises:
        SettingsError: naming both values.
    """
    preamble, picture_token = checkpoint.family.preamble, checkpoint.family.picture_token
    with library_errors("tokenizer"):
        found, picture = (tokenizer(text)["input_ids"] for text in (preamble.text, picture_token))
    if len(found) != preamble.tokens:
        raise unsupported(
            f"the tokenizer makes {len(found)} tokens of the template's preamble; "
            f"the model family needs {preamble.tokens}"
        )
    if picture != [config.image_token_id]:
        raise corrupt(
            f"{picture_token} is {picture} to the tokenizer, and {config.image_token_id} by "
            "text_encoder/config.json"
        )
    if len(tokenizer) > config.text_config.vocab_size:
        raise corrupt(
            f"the tokenizer has {len(tokenizer)} tokens, and the text encoder "
            f"{config.text_config.vocab_size}"
        )
    vision = config.vision_config
    for name, own, theirs in (
        ("patch_size", processor.patch_size, vision.patch_size),
        ("merge_size", processor.merge_size, vision.spatial_merge_size),
        ("temporal_patch_size", processor.temporal_patch_size, vision.temporal_patch_size),
    ):
        if own != theirs:
            raise corrupt(f"{name} is {own} in processor/, and {theirs} in text_encoder/")
    _check_tokenizers(checkpoint.part("tokenizer"), checkpoint.part("processor"))


def _check_tokenizers(tokenizer: Path, processor: Path) -> None:
    """Refuse a second tokenizer, in processor/, that makes other tokens."""
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"):
        first, second = tokenizer / name, processor / name
        if first.is_file() and second.is_file() and _meaning(first) != _meaning(second):
            raise corrupt(f"{name} in processor/ is another one than in tokenizer/")


def _meaning(path: Path) -> Any:
    if path.suffix != ".json":
        return path.read_bytes().split()
    with library_errors(f"{path.parent.name}/{path.name}"):
        content = json.loads(path.read_bytes())
        if path.name != "tokenizer.json":
            return content
        added = {one["content"]: one["id"] for one in content.get("added_tokens", [])}
        return content["model"]["vocab"], content["model"].get("merges"), added
