import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from vtryon.errors import RequestError
from vtryon_loadtests.diffusers_pipeline import diffusers_pipeline
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.text_encoder import PromptEncoder


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder.load(Checkpoint.open(SHIPPED_CHECKPOINT), Placement.of("cpu", "fp32"))


def test_hidden_states_are_those_of_the_librarys_pipeline(encoder, example) -> None:
    pipeline = diffusers_pipeline(SHIPPED_CHECKPOINT)
    assert isinstance(pipeline.text_encoder, Qwen2_5_VLForConditionalGeneration)
    images = [example.person, example.garment]
    with torch.no_grad():
        theirs, mask = pipeline.encode_prompt(example.prompt, images, device=torch.device("cpu"))
    [ours] = encoder.embed(encoder.prepare([example.prompt], images, resolve(None)))
    assert mask is None
    torch.testing.assert_close(ours, theirs[0], atol=1e-5, rtol=1e-4)


def test_a_prompt_without_pictures_is_encoded_too(encoder) -> None:
    positive, negative = encoder.embed(encoder.prepare(["a red shirt", ""], [], resolve(None)))
    assert positive.shape[1] == negative.shape[1] == 128
    assert len(positive) > len(negative)


def test_prompts_embedded_together_are_those_embedded_alone(encoder, example) -> None:
    pictures = [example.person, example.garment]
    asked = [
        *encoder.prepare(["a red shirt, tucked in", ""], pictures, resolve(None)),
        *encoder.prepare(["x"], [], resolve(None)),
        *encoder.prepare(["worn loose"], pictures[:1], resolve(None)),
    ]
    for one, together in zip(asked, encoder.embed(asked), strict=True):
        torch.testing.assert_close(together, encoder.embed([one])[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>", "<|endoftext|>", "<|box_start|>"])
def test_the_models_own_tokens_are_refused_in_a_prompt(encoder, token: str) -> None:
    with pytest.raises(RequestError, match="belongs to the model's template"):
        encoder.prepare([f"wear {token} this"], [], resolve(None))
