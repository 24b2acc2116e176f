"""NaN is found where it is computed, at the first step, and costs nobody else his request."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from tests.support.batching import ManualExecutor, Recorder, random_sampler

from vtryon.errors import StageError
from vtryon.types import Stage
from vtryon_services.engine.batching.batcher import StepBatcher
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.decoder import Decoder
from vtryon_services.engine.latent_encoder import VaeEncoder
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.plan import SamplingPlan, SamplingRequest
from vtryon_services.engine.sampler import Given, Sampler
from vtryon_services.engine.text_encoder import PromptEncoder

CPU = Placement.of("cpu", "fp32")
NUMERICS = resolve(None)


def plan(sampler: Sampler) -> SamplingPlan:
    sigmas = sampler.sigmas(NUMERICS, 4, 32, 32, 1.0)
    return SamplingPlan(NUMERICS, 32, 32, sigmas, seed=1)


def given(width: int, channels: int, *, spoilt: bool = False) -> Given:
    positive = torch.full((3, width), math.nan) if spoilt else torch.randn(3, width)
    return Given(positive, None, [torch.randn(channels, 4, 4)])


def test_the_sampler_ends_at_the_first_step_whose_prediction_is_not_finite() -> None:
    sampler = Sampler.load(Checkpoint.open(SHIPPED_CHECKPOINT), CPU)
    sampler.transformer.transformer_blocks[2].attn.to_q.weight[0, 0] = math.nan
    sample = sampler.begin(plan(sampler), given(sampler.width, sampler.channels))
    with pytest.raises(StageError, match=r"the transformer computed NaN .*level 1: .*--dtype bf16"):
        sampler.advance([sample])
    assert sample.step == 0


def test_a_request_that_computes_nan_fails_alone() -> None:
    executor, sampler = ManualExecutor(), random_sampler()
    batcher = StepBatcher(sampler, executor)
    sinks = []
    for spoilt in (False, True, False):
        batched = batcher.admit(SamplingRequest(plan(sampler), tokens=11, guided=False))
        sinks.append(Recorder())
        batched.begin(given(sampler.width, sampler.channels, spoilt=spoilt), sinks[-1])
    executor.run_all()
    assert [len(sink.steps) for sink in sinks] == [4, 0, 4]
    assert isinstance(sinks[1].error, StageError)
    assert "computed NaN" in sinks[1].error.message
    assert [sinks[0].error, sinks[2].error] == [None, None]


@pytest.mark.parametrize("stage", [Stage.LATENT_ENCODER, Stage.TEXT_ENCODER, Stage.DECODING])
def test_encoders_and_decoder_name_themselves(stage: Stage) -> None:
    checkpoint = Checkpoint.open(SHIPPED_CHECKPOINT)
    grey = Image.new("RGB", (64, 64), "grey")
    if stage is Stage.TEXT_ENCODER:
        text = PromptEncoder.load(checkpoint, CPU)
        text.model.language_model.norm.weight[0] = math.nan
        with pytest.raises(StageError, match="the text encoder computed NaN"):
            text.embed(text.prepare(["a shirt"], [grey], NUMERICS))
    elif stage is Stage.LATENT_ENCODER:
        encoder = VaeEncoder.load(checkpoint, CPU)
        encoder._vae._vae.quant_conv.bias[0] = math.inf
        with pytest.raises(StageError, match="the VAE's encoder computed NaN"):
            encoder.encode([encoder.fit(grey, NUMERICS).pixels])
    else:
        decoder = Decoder.load(checkpoint, CPU)
        decoder._vae._vae.post_quant_conv.bias[0] = math.nan
        with pytest.raises(StageError, match="the VAE's decoder computed NaN"):
            decoder.decode([torch.zeros(decoder.channels, 4, 4)])
