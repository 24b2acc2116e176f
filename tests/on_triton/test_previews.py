"""What the export says of previews reaches those who ask for them, without a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tests.support.checkpoints import without_preview_map
from tritonclient.grpc import model_config_pb2

from vtryon.events import Accepted, StageStarted, UnusedOption
from vtryon.options import make_options
from vtryon.tensors import byte_length
from vtryon.types import (
    DataType,
    Payload,
    PayloadKind,
    PreviewPolicy,
    SampleStart,
    Stage,
    TensorSpec,
    TryOnStart,
)
from vtryon_services.backends.ensemble import Progress, TritonTryOn
from vtryon_services.backends.triton import TritonSampling
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.pipeline.attempts import FailoverPolicy, RetryBudget
from vtryon_services.pipeline.ensemble import EnsembleFlow
from vtryon_services.rpc.call import Call, Incoming
from vtryon_services.stages.sampling.settings import SamplingSettings
from vtryon_services.stages.sampling.stage import SamplingStage
from vtryon_services.triton.client import TritonPool
from vtryon_services.triton.contract import STAGE_MODELS, Model
from vtryon_services.triton.export import Options, export

CALL = Call("previews", 60.0, False)


def exported(folder: Path, checkpoint: Path) -> dict[Model, dict[str, str]]:
    """What a server would answer of each model."""
    export(Checkpoint.open(checkpoint), folder, Options())
    described = {}
    for model in STAGE_MODELS:
        text = (folder / model / "config.pbtxt").read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        described[model] = {name: one.string_value for name, one in config.parameters.items()}
    return described


@pytest.fixture(params=[True, False])
def described(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """An export, and the options that are to be named."""
    whole = request.param
    checkpoint = SHIPPED_CHECKPOINT if whole else without_preview_map(tmp_path / "checkpoint")
    return exported(tmp_path / "repository", checkpoint), [] if whole else ["previews"]


async def nothing() -> AsyncGenerator[Any, None]:
    return
    yield


def fields(unused: tuple[UnusedOption, ...]) -> list[str]:
    return [one.field for one in unused]


async def test_the_sampler_before_triton_names_previews(described) -> None:
    models, expected = described
    backend = TritonSampling(TritonPool(["127.0.0.1:1"]), models[Model.SAMPLING])
    shapes = {
        PayloadKind.EMBEDDINGS: (3, backend.width),
        PayloadKind.REFERENCE_LATENTS: (backend.channels, 16, 12),
    }
    specs = {kind: TensorSpec(DataType.FP32, shape) for kind, shape in shapes.items()}
    payloads = tuple(Payload(kind, byte_length(one), tensor=one) for kind, one in specs.items())
    start = SampleStart(width=96, height=128, previews=PreviewPolicy(), payloads=payloads)
    stage = SamplingStage(backend, SamplingSettings.load(backend="triton"))
    events = stage.sample(start, Incoming(payloads, nothing()), CALL)
    first = await anext(events)
    await events.aclose()
    await backend.close()
    assert isinstance(first, Accepted)
    assert fields(first.unused_options) == expected


class _OneStep(TritonTryOn):
    async def draw(self, *_: Any, **__: Any) -> AsyncGenerator[Progress, None]:
        yield Progress(1, 2, 0.5, 0.1, 0.0, None, (), None)


async def test_an_ensemble_names_previews(described) -> None:
    models, expected = described
    ensemble = _OneStep(TritonPool(["127.0.0.1:1"]), models)
    start = TryOnStart(options=make_options(previews=True))
    retries = FailoverPolicy(RetryBudget(), 1, 0)
    flow = EnsembleFlow(ensemble, start, Incoming((), nothing()), CALL, retries)
    events = flow.events()
    async for event in events:
        if isinstance(event, StageStarted) and event.stage is Stage.SAMPLING:
            assert event.accepted is not None
            assert fields(event.accepted.unused_options) == expected
            break
    else:
        pytest.fail("the sampler did not start")
    await events.aclose()
    await ensemble.close()
