"""The training loop: saves as it goes, and goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vtryon.cli.console import PlainConsole, text_column
from vtryon.cli.sheets import sheet
from vtryon_services.mannequin.training.muon import Muon

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Schedule and parameters of training; stored with the state, and fixed on resuming.

    Attributes:
        learning_rate: its maximum, reached after `warmup` of the steps, falling to zero over the
            last `decay` of them.
        bfloat16: whether products are computed in bfloat16 (weights and sums stay in fp32).
        average: decay of the averaged weights, which are exported.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: float = 0.02
    decay: float = 0.6
    average: float = 0.998
    bfloat16: bool = False
    seed: int = 0
    save_every: int = 200
    grid_every: int = 1000

    def rate(self, step: int) -> float:
        """Give the learning rate's share of its highest at a step."""
        rising = (step + 1) / max(1, round(self.warmup * self.steps))
        falling = (self.steps - step) / max(1, round(self.decay * self.steps))
        return min(1.0, rising, falling)


class Task(Protocol):
    """One part of the checkpoint, as the loop sees it."""

    name: str
    model: nn.Module

    def loss(self, model: nn.Module, step: int, plan: TrainingPlan) -> torch.Tensor:
        """Draw the step's data from the step's number, and give the loss."""
        ...

    def optimizers(self, learning_rate: float) -> list[torch.optim.Optimizer]:
        """Make the optimizers of the model's parameters."""
        ...

    def compile(self) -> None:
        """Compile the modules for which it pays, in place."""
        ...

    def grid(self, model: nn.Module) -> Sequence[Sequence[Image.Image]]:
        """Draw rows of held-out samples to look at."""
        ...

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the part in diffusers layout."""
        ...


class Training:
    """A task, its averaged weights and its optimizers, in a folder."""

    def __init__(self, task: Task, folder: Path, plan: TrainingPlan) -> None:
        self._task = task
        self._folder = folder
        self._plan = plan
        self._average = AveragedModel(
            task.model, multi_avg_fn=get_ema_multi_avg_fn(plan.average), use_buffers=True
        )
        self._optimizers = task.optimizers(plan.learning_rate)
        self._highest = [group["lr"] for group in self._groups()]
        self.step = 0

    @property
    def _device_type(self) -> str:
        return next(self._task.model.parameters()).device.type

    @property
    def _state_path(self) -> Path:
        return self._folder / "state.pt"

    def resume(self) -> None:
        """Continue from the folder's state, if there is one.

        Raises:
            ValueError: the folder was made with another plan.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = self._folder / "settings.json"
        wanted = json.dumps(asdict(self._plan), indent=2) + "\n"
        if settings.exists() and settings.read_text() != wanted:
            raise ValueError(f"{self._folder} was begun with other settings: see settings.json")
        settings.write_text(wanted)
        if self._state_path.exists():
            state = torch.load(self._state_path, weights_only=True)
            self.step = state["step"]
            self._task.model.load_state_dict(state["model"])
            self._average.load_state_dict(state["average"])
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def run(self, console: PlainConsole, *, stop_after: int | None = None) -> None:
        """Train to the plan's end, or for so many steps; then export the averaged weights."""
        end = self._plan.steps if stop_after is None else min(self._plan.steps, stop_after)
        with _bar(console) as progress:
            bar = progress.add_task(self._task.name, total=end, completed=self.step, loss="")
            while self.step < end:
                loss = self._advance()
                progress.update(bar, completed=self.step, loss=f"loss {loss:.4f}")
        self.save()
        self._task.export(self._average.module, self._folder / "export")

    def save(self) -> None:
        """Write the state; a reader never sees half of it."""
        scratch = self._state_path.with_suffix(".part")
        state = {
            "step": self.step,
            "model": self._task.model.state_dict(),
            "average": self._average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        torch.save(state, scratch)
        scratch.replace(self._state_path)

    def _advance(self) -> float:
        share = self._plan.rate(self.step)
        for group, highest in zip(self._groups(), self._highest, strict=True):
            group["lr"] = highest * share
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._plan.bfloat16):
            loss = self._task.loss(self._task.model, self.step, self._plan)
        loss.backward()
        nn.utils.clip_grad_norm_(self._task.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._average.update_parameters(self._task.model)
        self.step += 1
        self._keep_record(loss.item())
        return loss.item()

    def _keep_record(self, loss: float) -> None:
        with (self._folder / "losses.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, "loss": round(loss, 6)}) + "\n")
        if self.step % self._plan.save_every == 0:
            self.save()
        if self.step % self._plan.grid_every == 0:
            rows = self._task.grid(self._average.module)
            sheet(rows, height=128).save(self._folder / f"grid-{self.step:06d}.png")

    def _groups(self) -> list[dict[str, float]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]


def _bar(console: PlainConsole) -> Progress:
    return Progress(
        text_column("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        text_column("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def split_optimizers(
    model: nn.Module, learning_rate: float, matrix_rate: float
) -> list[torch.optim.Optimizer]:
    """Give Muon for matrices and kernels of the blocks, and AdamW for the rest."""
    named = [item for item in model.named_parameters() if item[1].requires_grad]
    matrices = [parameter for name, parameter in named if parameter.dim() > 1 and _is_inner(name)]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for _, parameter in named if id(parameter) not in chosen]
    adam = torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    if not matrices:
        return [adam]
    return [adam, Muon(matrices, lr=matrix_rate)]


def _is_inner(name: str) -> bool:
    """Whether a weight is inside the network: not its first layer, its last, or a modulation."""
    return "block" in name and "mod" not in name
