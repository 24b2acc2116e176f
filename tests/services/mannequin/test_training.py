"""Training at toy size: the loss falls, resuming changes no bit, the product takes the result."""

import json
from pathlib import Path

import pytest
import torch

import vtryon
from vtryon.cli.console import PlainConsole
from vtryon.embedded import embedded_mesh
from vtryon_loadtests.diffusers_pipeline import diffusers_pipeline, draw
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.placement import Placement
from vtryon_services.mannequin.training.autoencoder import DecoderTask, VaeTask
from vtryon_services.mannequin.training.denoiser import TransformerTask
from vtryon_services.mannequin.training.loop import Task, Training, TrainingPlan
from vtryon_services.mannequin.training.muon import orthogonalise
from vtryon_services.mannequin.training.networks import make_transformer, make_vae
from vtryon_services.mannequin.training.pool import Encoder, Pool, World, fill_pool
from vtryon_services.mannequin.training.run import Settings, TrainingRun

CPU = torch.device("cpu")
QUIET = PlainConsole(quiet=True)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Pool:
    folder = tmp_path_factory.mktemp("pool")
    encoder = Encoder(Checkpoint.open(SHIPPED_CHECKPOINT), Placement.of("cpu", "fp32"))
    fill_pool(folder, encoder, 2, World(people=2, looks=3, sources=2), 0, QUIET)
    return Pool.load(folder)


def vae_task(_pool) -> Task:
    torch.manual_seed(0)
    return VaeTask(make_vae(base=4, multipliers=(1, 1, 2, 2)), CPU, crop=32)


def decoder_task(_pool) -> Task:
    torch.manual_seed(0)
    return DecoderTask(make_vae(base=4, multipliers=(1, 1, 2, 2)), CPU)


def transformer_task(pool) -> Task:
    torch.manual_seed(0)
    preview = Checkpoint.open(SHIPPED_CHECKPOINT).geometry.preview
    return TransformerTask(make_transformer(layers=1, heads=1), pool, preview, CPU)


TASKS = [vae_task, decoder_task, transformer_task]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("make", TASKS)
def test_the_loss_falls_and_samples_are_drawn(make, pool, tmp_path) -> None:
    plan = TrainingPlan(60, 8, 1e-3, warmup=0.1, grid_every=20)
    training = Training(make(pool), tmp_path, plan)
    training.resume()
    training.run(QUIET)
    found = losses(tmp_path)
    assert sum(found[-15:]) < sum(found[:15])
    assert {"grid-000020.png", "grid-000040.png", "settings.json", "state.pt", "export"} <= {
        path.name for path in tmp_path.iterdir()
    }


@pytest.mark.parametrize("make", TASKS)
def test_resuming_changes_no_bit(make, pool, tmp_path) -> None:
    plan = TrainingPlan(6, 2, 1e-3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    straight = Training(make(pool), whole, plan)
    straight.resume()
    straight.run(QUIET)
    for stop in (2, 5, None):
        training = Training(make(pool), parts, plan)
        training.resume()
        training.run(QUIET, stop_after=stop)
    assert training.step == 6
    assert losses(whole) == losses(parts)
    for name in [path.name for path in (whole / "export").iterdir()]:
        assert (whole / "export" / name).read_bytes() == (parts / "export" / name).read_bytes()


def test_a_pool_pairs_every_look_with_others_of_the_same_person(pool) -> None:
    assert len(pool) == 2 * 2 * 3 * 2
    batch = pool.batch(torch.arange(len(pool)), 64, CPU)
    assert batch["person"].shape == batch["garment"].shape == batch["target"].shape
    assert not (batch["person"] == batch["target"]).all(dim=(1, 2)).any()
    assert batch["counts"].sum(1).tolist() == pool.lengths.tolist()
    assert batch["shirt"].max() > 0.9


@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 8, 5), (1, 6, 6)])
def test_muon_drives_singular_values_towards_one(shape) -> None:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(drawn))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_a_run_is_not_resumed_under_another_plan(pool, tmp_path) -> None:
    Training(transformer_task(pool), tmp_path, TrainingPlan(6, 2, 1e-3)).resume()
    with pytest.raises(ValueError, match="other settings"):
        Training(transformer_task(pool), tmp_path, TrainingPlan(7, 2, 1e-3)).resume()


def test_fresh_networks_begin_where_training_begins_well() -> None:
    vae = make_vae(base=4, multipliers=(1, 1, 2, 2))
    assert vae.config.z_dim == 16
    transformer = make_transformer(layers=1, heads=1)
    predicted = transformer(
        hidden_states=torch.randn(1, 4, 64),
        timestep=torch.ones(1),
        encoder_hidden_states=torch.randn(1, 3, 128),
        img_shapes=[[(1, 2, 2)]],
        return_dict=False,
    )[0]
    assert predicted.abs().max() == 0


@pytest.mark.timeout(300)
async def test_a_run_trains_every_part_and_both_the_product_and_diffusers_take_the_result(
    tmp_path, example
) -> None:
    short = {"vae_steps": 2, "transformer_steps": 2, "decoder_steps": 2}
    run = TrainingRun(tmp_path, Settings(plain=True, batch=2, examples=192, **short), QUIET)
    run.make("all")
    folder = tmp_path / "checkpoint"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 15_000_000
    async with embedded_mesh(checkpoint=folder) as target, vtryon.Client(target) as client:
        result = await client.try_on(example.person, example.garment, "x", steps=1, seed=1)
    assert result.picture.size == (96, 128)
    drawn = draw(
        diffusers_pipeline(folder),
        [example.person],
        prompt="x",
        num_inference_steps=1,
        width=96,
        height=128,
        seed=1,
    )
    assert drawn.size == (96, 128)
