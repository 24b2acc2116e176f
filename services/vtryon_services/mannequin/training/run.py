"""A run: a folder in which a checkpoint is trained, part by part.

`vae`, `pool`, `transformer` and `decoder` hold the parts, each with its settings, state, losses and
sample grids; `checkpoint` holds the result. Stop it at any time: the same command continues.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

from vtryon.cli.console import PlainConsole
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.geometry import PreviewMap
from vtryon_services.engine.placement import Placement
from vtryon_services.mannequin.package import package
from vtryon_services.mannequin.training.autoencoder import DecoderTask, VaeTask
from vtryon_services.mannequin.training.denoiser import TransformerTask
from vtryon_services.mannequin.training.loop import Task, Training, TrainingPlan
from vtryon_services.mannequin.training.networks import make_transformer, make_vae
from vtryon_services.mannequin.training.pool import Encoder, Pool, World, fill_pool


@dataclass(frozen=True, slots=True)
class Settings:
    """How parts are trained; see `vtryon mannequin train --help`."""

    start: Path | None = None
    device: str = "cpu"
    batch: int = 32
    plain: bool = False
    rate: float = 1.0
    examples: int = 65_280
    vae_steps: int = 7000
    transformer_steps: int = 20_000
    decoder_steps: int = 1000

    @classmethod
    def of(cls, device: str | None = None, **given: Any) -> Settings:
        """Take the GPU where there is one and nothing else was asked for."""
        return cls(device=device or ("cuda" if torch.cuda.is_available() else "cpu"), **given)


class TrainingRun:
    """A run folder, and the parts of a checkpoint that come out of it in turn."""

    def __init__(self, folder: Path, settings: Settings, console: PlainConsole) -> None:
        self._folder = folder
        self._settings = settings
        self._console = console
        self._device = torch.device(settings.device)

    def make(self, part: str) -> None:
        """Train a part and its dependencies, or continue; `all` trains all in turn.

        Raises:
            KeyError: there is no such part.
        """
        steps: dict[str, tuple[Callable[[], None], ...]] = {
            "vae": (self._make_vae,),
            "transformer": (self._make_pool, self._make_transformer),
            "decoder": (self._make_decoder, self._make_checkpoint),
        }
        for step in chain(*steps.values()) if part == "all" else steps[part]:
            step()

    def _make_vae(self) -> None:
        self._train(VaeTask(self._start_vae(), self._device), self._settings.vae_steps, 1e-3)

    def _make_pool(self) -> None:
        base = self._folder / "base"
        if not base.exists():
            assemble(base, {"vae": self._folder / "vae" / "export"})
        encoder = Encoder(Checkpoint.open(base), Placement.of(str(self._device), "fp32"))
        world = World()
        shards = -(-self._settings.examples // world.examples)
        fill_pool(self._folder / "pool", encoder, shards, world, 0, self._console)

    def _make_transformer(self) -> None:
        preview = Checkpoint.open(self._folder / "base").geometry.preview
        assert isinstance(preview, PreviewMap)
        pool = Pool.load(self._folder / "pool")
        task = TransformerTask(self._start_transformer(), pool, preview, self._device)
        self._train(task, self._settings.transformer_steps, 1e-3)

    def _make_decoder(self) -> None:
        vae = AutoencoderKLQwenImage.from_pretrained(self._folder / "vae" / "export")
        self._train(DecoderTask(vae.float(), self._device), self._settings.decoder_steps, 1e-3)

    def _make_checkpoint(self) -> None:
        parts = {"vae": "decoder", "transformer": "transformer"}
        exports = {part: self._folder / made / "export" for part, made in parts.items()}
        assemble(self._folder / "checkpoint", exports)
        self._console.say(f"{self._folder / 'checkpoint'} is ready")

    def _train(self, task: Task, steps: int, learning_rate: float) -> None:
        fast = not self._settings.plain
        rate = learning_rate * self._settings.rate
        plan = TrainingPlan(steps, self._settings.batch, rate, bfloat16=fast)
        training = Training(task, self._folder / task.name, plan)
        training.resume()
        if fast:
            task.compile()
        training.run(self._console)

    def _start_vae(self) -> AutoencoderKLQwenImage:
        if self._settings.start is None:
            return make_vae()
        return AutoencoderKLQwenImage.from_pretrained(self._settings.start / "vae").float()

    def _start_transformer(self) -> QwenImageTransformer2DModel:
        if self._settings.start is None:
            return make_transformer()
        folder = self._settings.start / "transformer"
        return QwenImageTransformer2DModel.from_pretrained(folder).float()


def assemble(folder: Path, parts: dict[str, Path]) -> None:
    """Combine trained parts with the rest of the shipped checkpoint; complete the package."""
    scratch = folder.with_name(folder.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(SHIPPED_CHECKPOINT, scratch, ignore=shutil.ignore_patterns("README.md"))
    for name, part in parts.items():
        shutil.rmtree(scratch / name)
        shutil.copytree(part, scratch / name)
    package(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(scratch, folder)  # noqa: PTH105
