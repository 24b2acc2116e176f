"""Exported graphs, run by onnxruntime at other sizes, give what the engine gives."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from tests.support.checkpoints import random_checkpoint
from tests.support.processes import VTRYON
from tritonclient.grpc import model_config_pb2

from vtryon.errors import SettingsError
from vtryon.types import Numerics, RopeLayout, Stage
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.forward import Forward, Prediction, divide
from vtryon_services.engine.geometry import Geometry
from vtryon_services.engine.image_vae import ImageVae
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.sampler import Sampler
from vtryon_services.engine.text_encoder import PromptEncoder
from vtryon_services.models import onnx_export
from vtryon_services.models.graphs import ExportGraph, make_graph
from vtryon_services.models.modules import text_positions, vision_inputs
from vtryon_services.models.onnx_export import export_onnx, trtexec

PLACEMENT = Placement.of("cpu", "fp32")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    geometry = Geometry(reference_area=96 * 64, condition_area=128 * 128)
    folder = tmp_path_factory.mktemp("onnx") / "random"
    return Checkpoint.open(random_checkpoint(folder, geometry, zero_cond_t=True))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx") / "repository"


def exported(graph: ExportGraph, repository: Path) -> Path:
    """The folder of a graph's model; exported once, since that takes seconds."""
    folder = repository / graph.name
    if not folder.exists():
        _, difference = export_onnx(graph, repository, device="cuda", dtype=torch.float32)
        assert difference < 1e-4
    return folder


def run(repository: Path, checkpoint: Checkpoint, stage: Stage, **given: torch.Tensor):
    folder = exported(make_graph(stage, checkpoint, PLACEMENT), repository)
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    return session.run(None, {name: one.numpy() for name, one in given.items()})[0]


@pytest.mark.timeout(600)
def test_the_vae(checkpoint, repository) -> None:
    vae = ImageVae.load(checkpoint, PLACEMENT)
    for batch, height, width in [(1, 32, 96), (3, 64, 32)]:
        pixels = torch.rand(batch, 3, height, width) * 2 - 1
        latents = vae.encode(pixels)
        found = run(repository, checkpoint, Stage.LATENT_ENCODER, pixels=pixels)
        np.testing.assert_allclose(found, latents, atol=1e-4)
        drawn = run(repository, checkpoint, Stage.DECODING, latents=latents)
        np.testing.assert_allclose(drawn, vae.decode(latents), atol=1e-4)


def test_the_transformer_at_several_lengths(checkpoint, repository) -> None:
    sampler = Sampler.load(checkpoint, PLACEMENT)
    rows = []
    for number, (text, side) in enumerate([(9, 4), (23, 4), (17, 2)]):
        shapes = ((1, side, 4), (1, 2, side))
        target, references = (torch.randn(h * w, 4 * sampler.channels) for _, h, w in shapes)
        embeddings = torch.randn(text, sampler.width)
        sigma = 0.9 - 0.3 * number
        rows.append(Prediction(target, references, embeddings, shapes, sigma, RopeLayout.DIFFUSERS))
    forward = Forward(sampler.transformer)
    for row in rows:
        [batch] = divide([row], 1)
        with torch.inference_mode():
            [expected] = forward([row], batch)
        rotary, _ = forward._positions([row], batch)
        found = run(
            repository,
            checkpoint,
            Stage.SAMPLING,
            target=row.target[None],
            references=row.references[None],
            embeddings=row.embeddings[None],
            sigma=torch.tensor([row.sigma]),
            rotary=rotary,
            mask=torch.ones(1, 1, 1, row.tokens),
        )
        np.testing.assert_allclose(found[0], expected, atol=2e-4)


def test_the_transformer_masks_what_a_row_has_not(checkpoint, repository) -> None:
    sampler = Sampler.load(checkpoint, PLACEMENT)
    forward = Forward(sampler.transformer)
    shapes = ((1, 4, 4), (1, 4, 2))
    pictures = [torch.randn(h * w, 4 * sampler.channels) for _, h, w in shapes]
    rows = [
        Prediction(*pictures, torch.randn(text, sampler.width), shapes, 0.5, RopeLayout.DIFFUSERS)
        for text in (9, 21)
    ]
    [batch] = divide(rows, 2, padding=5.0)
    with torch.inference_mode():
        expected = forward(rows, batch)
    rotary, mask = forward._positions(rows, batch)
    assert mask is not None
    found = run(
        repository,
        checkpoint,
        Stage.SAMPLING,
        target=torch.stack([pictures[0]] * 2),
        references=torch.stack([pictures[1]] * 2),
        embeddings=torch.nn.utils.rnn.pad_sequence([r.embeddings for r in rows], True),
        sigma=torch.tensor([0.5, 0.5]),
        rotary=rotary,
        mask=mask.float(),
    )
    np.testing.assert_allclose(found, torch.stack(expected), atol=2e-4)


def test_the_language_model_with_its_vision_tower(checkpoint, repository) -> None:
    encoder = PromptEncoder.load(checkpoint, PLACEMENT)
    sizes = [(120, 200), (200, 64)]
    images = [Image.effect_noise(size, 80).convert("RGB") for size in sizes]
    prompts = ["a long red shirt with short sleeves", "blue"]
    asked = encoder.prepare(prompts, images, resolve(Numerics()))
    expected = encoder.embed(asked)
    seen = asked[0].seen
    texts = [encoder.write(one) for one in asked]
    given = encoder._tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    grids = torch.cat([seen.grids, seen.grids])
    found = run(
        repository,
        checkpoint,
        Stage.TEXT_ENCODER,
        tokens=given["input_ids"],
        attention=given["attention_mask"],
        positions=text_positions(encoder.model, given["input_ids"], given["attention_mask"], grids),
        patches=torch.cat([seen.pixels, seen.pixels]),
        **vision_inputs(grids, encoder.model.config.vision_config),
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[: len(other)], other, atol=2e-4)


def test_what_triton_and_trtexec_need_is_beside_it(checkpoint, repository) -> None:
    graph = make_graph(Stage.SAMPLING, checkpoint, PLACEMENT)
    folder = exported(graph, repository)
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    inputs = {one.name for one in session.get_inputs()}
    for name in ("config.pbtxt", "config.tensorrt.pbtxt"):
        text = (folder / name).read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert {one.name for one in config.input} == inputs
    assert "trt_engine_cache_enable" in (folder / "config.pbtxt").read_text()
    readme = (folder / "README.md").read_text()
    assert trtexec(graph, torch.float32) in readme
    assert "--fp16" in trtexec(graph, torch.float16)
    for range_of in ("min", "opt", "max"):
        [shapes] = re.findall(rf"--{range_of}Shapes=(\S+)", readme)
        assert {part.partition(":")[0] for part in shapes.split(",")} == inputs
    with pytest.raises(FileExistsError):
        export_onnx(graph, repository, device="cpu", dtype=torch.float32)


def test_what_cannot_be_exported_is_refused_with_the_reason(checkpoint, tmp_path) -> None:
    graph = make_graph(Stage.DECODING, checkpoint, PLACEMENT)

    def cannot(latents: torch.Tensor) -> torch.Tensor:
        raise ValueError("this one depends on data")

    graph.module.forward = cannot
    with pytest.raises(SettingsError, match=r"vae_decoder can't be expressed in ONNX: .*data"):
        export_onnx(graph, tmp_path, device="cpu", dtype=torch.float32)
    assert not (tmp_path / "vae_decoder").exists()


def test_a_graph_that_differs_is_not_written(checkpoint, repository, tmp_path, monkeypatch) -> None:
    graph = make_graph(Stage.DECODING, checkpoint, PLACEMENT)
    model = exported(graph, repository) / "1" / "model.onnx"
    monkeypatch.setattr(onnx_export, "_write_model", lambda _, path: shutil.copy(model, path))
    graph.module.vae._mean += 0.1
    with pytest.raises(SettingsError, match="differs from torch"):
        export_onnx(graph, tmp_path, device="cpu", dtype=torch.float32)
    assert not (tmp_path / "vae_decoder").exists()


def test_the_command(tmp_path) -> None:
    command = [VTRYON, "models", "export-onnx"]
    done = subprocess.run([*command, "latent-encoder", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "differs from torch by" in done.stdout
    assert (tmp_path / "vae_encoder" / "1" / "model.onnx").exists()
    unknown = subprocess.run([*command, "tailor", tmp_path], capture_output=True, text=True)
    assert unknown.returncode == 2
