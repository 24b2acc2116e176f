"""Compiled blocks give what the others give, whatever the rows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from tests.support.checkpoints import random_checkpoint

from vtryon.types import RopeLayout
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.forward import Forward, Prediction, divide
from vtryon_services.engine.geometry import Geometry
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.sampler import Sampler

PLACE = Placement.of("cpu", "fp32")


def draw_row(sampler: Sampler, text: int, side: int) -> Prediction:
    generator = torch.Generator().manual_seed(text)
    channels = 4 * sampler.channels
    shapes = ((1, side, 6), (1, 8, 6))
    target, reference, embeddings = (
        torch.randn(shape, generator=generator)
        for shape in ((side * 6, channels), (48, channels), (text, sampler.width))
    )
    return Prediction(target, reference, embeddings, shapes, 0.5, RopeLayout.DIFFUSERS)


@pytest.mark.timeout(300)
@torch.inference_mode()
def test_compiled_blocks_give_the_same_and_are_compiled_before_the_first_request(tmp_path) -> None:
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path / "random", Geometry()))
    plain = Sampler.load(checkpoint, PLACE)
    compiled = Sampler.load(checkpoint, PLACE, compiled=True)
    mixes = [[(40, 8)], [(40, 8), (40, 8)], [(30, 8), (44, 8), (9, 5)]]
    with torch.compiler.set_stance("fail_on_recompile"):
        for mix in mixes:
            rows = [draw_row(plain, text, side) for text, side in mix]
            [batch] = divide(rows, 16, padding=10.0)
            pairs = zip(
                Forward(plain.transformer)(rows, batch),
                Forward(compiled.transformer)(rows, batch),
                strict=True,
            )
            for one, other in pairs:
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_where_nothing_can_be_compiled_the_service_says_so_and_does_not_start(tmp_path) -> None:
    nowhere = {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "vtryon_services.stages.sampling"],
        env={**os.environ, **nowhere, "VTRYON_COMPILED": "true", "VTRYON_LISTEN": "127.0.0.1:0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "can't be compiled here" in done.stderr
