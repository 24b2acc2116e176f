"""Train a checkpoint: python -m vtryon_services.mannequin.training RUN [--only vae].

RUN/vae, RUN/pool, RUN/transformer and RUN/decoder hold the parts, each with its settings, state,
losses and sample grids; RUN/checkpoint holds what comes out. Stop it whenever you like: the same
command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from rich.console import Console

from vtryon_services.backends.torch import SHIPPED_CHECKPOINT
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.geometry import PreviewMap
from vtryon_services.engine.placement import Placement
from vtryon_services.mannequin.package import package
from vtryon_services.mannequin.training.autoencoder import DecoderTask, VaeTask
from vtryon_services.mannequin.training.denoiser import TransformerTask
from vtryon_services.mannequin.training.loop import Plan, Task, Training
from vtryon_services.mannequin.training.networks import make_transformer, make_vae
from vtryon_services.mannequin.training.pool import Encoder, fill_pool, load_pool

PARTS = ("vae", "pool", "transformer", "decoder", "checkpoint")


class Run:
    """A run folder, and the parts of a checkpoint that come out of it in turn."""

    def __init__(self, folder: Path, arguments: argparse.Namespace, console: Console) -> None:
        self._folder = folder
        self._arguments = arguments
        self._console = console
        self._device = torch.device(arguments.device)

    def make(self, part: str) -> None:
        """Make one part, or go on with it."""
        getattr(self, f"_make_{part}")()

    def _make_vae(self) -> None:
        self._train(VaeTask(self._start_vae(), self._device), self._arguments.vae_steps, 2e-3)

    def _make_pool(self) -> None:
        base = self._folder / "base"
        if not base.exists():
            assemble(base, {"vae": self._folder / "vae" / "export"})
        encoder = Encoder(Checkpoint.open(base), Placement.of(str(self._device), "fp32"))
        size, examples = 64, self._arguments.examples
        fill_pool(self._folder / "pool", encoder, -(-examples // size), size, 0, self._console)

    def _make_transformer(self) -> None:
        preview = Checkpoint.open(self._folder / "base").geometry.preview
        assert isinstance(preview, PreviewMap)
        pool = load_pool(self._folder / "pool")
        task = TransformerTask(self._start_transformer(), pool, preview, self._device)
        self._train(task, self._arguments.transformer_steps, 1e-3)

    def _make_decoder(self) -> None:
        vae = AutoencoderKLQwenImage.from_pretrained(self._folder / "vae" / "export")
        self._train(DecoderTask(vae.float(), self._device), self._arguments.decoder_steps, 1e-3)

    def _make_checkpoint(self) -> None:
        parts = {"vae": "decoder", "transformer": "transformer"}
        exports = {part: self._folder / made / "export" for part, made in parts.items()}
        assemble(self._folder / "checkpoint", exports)
        self._console.print(f"{self._folder / 'checkpoint'} is ready")

    def _train(self, task: Task, steps: int, learning_rate: float) -> None:
        plan = Plan(steps, self._arguments.batch, learning_rate)
        training = Training(task, self._folder / task.name, plan)
        training.resume()
        training.run(self._console)

    def _start_vae(self) -> AutoencoderKLQwenImage:
        if self._arguments.start is None:
            return make_vae()
        return AutoencoderKLQwenImage.from_pretrained(self._arguments.start / "vae").float()

    def _start_transformer(self) -> QwenImageTransformer2DModel:
        if self._arguments.start is None:
            return make_transformer()
        folder = self._arguments.start / "transformer"
        return QwenImageTransformer2DModel.from_pretrained(folder).float()


def assemble(folder: Path, parts: dict[str, Path]) -> None:
    """Put trained parts beside the shipped checkpoint's others, and finish the package."""
    scratch = folder.with_name(folder.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(SHIPPED_CHECKPOINT, scratch, ignore=shutil.ignore_patterns("README.md"))
    for name, part in parts.items():
        shutil.rmtree(scratch / name)
        shutil.copytree(part, scratch / name)
    package(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(scratch, folder)  # noqa: PTH105


def main(arguments: list[str] | None = None) -> None:
    """Make the parts that are asked for, in order."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of the run; made if it is not there")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to make")
    parser.add_argument("--start", type=Path, help="checkpoint to go on from, instead of anew")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--examples", type=int, default=16_384, help="encoded for the transformer")
    parser.add_argument("--vae-steps", type=int, default=4000)
    parser.add_argument("--transformer-steps", type=int, default=10_000)
    parser.add_argument("--decoder-steps", type=int, default=500)
    given = parser.parse_args(arguments)
    run = Run(given.run, given, Console(stderr=True))
    for part in PARTS:
        if part in given.only:
            run.make(part)


if __name__ == "__main__":
    main()
