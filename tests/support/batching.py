"""A batcher whose thread is the test, and a sampler small enough to run hundreds of times."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import cache
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel

from vtryon.errors import VtryonError
from vtryon_services.engine.batching.batcher import Stepped
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.flow_match import FlowMatchSchedule
from vtryon_services.engine.loras.files import LoadedLora
from vtryon_services.engine.plan import QueuePosition
from vtryon_services.engine.sampler import Sampler


class ManualExecutor(Executor):
    """Runs a task when it is told to."""

    def __init__(self) -> None:
        self.tasks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Keep a task."""
        future: Future[Any] = Future()
        self.tasks.append((future, lambda: fn(*args, **kwargs)))
        return future

    def run_one(self) -> None:
        """Run the oldest task, if there is one."""
        if self.tasks:
            future, work = self.tasks.popleft()
            future.set_result(work())

    def run_all(self) -> None:
        """Run until nothing is left."""
        while self.tasks:
            self.run_one()


class Recorder:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.positions: list[QueuePosition] = []
        self.steps: list[Stepped] = []
        self.over = False
        self.error: VtryonError | None = None

    def on_queued(self, position: QueuePosition) -> None:
        """Keep a place."""
        self.positions.append(position)

    def on_step(self, step: Stepped) -> None:
        """Keep a step."""
        assert not self.over
        self.steps.append(step)

    def on_end(self, error: VtryonError | None) -> None:
        """Keep the end, of which there is one."""
        assert not self.over
        self.over, self.error = True, error


def random_transformer(*, zero_cond_t: bool = True) -> QwenImageTransformer2DModel:
    """Make a transformer of two layers with random weights, 4 latent channels, 32 wide."""
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        zero_cond_t=zero_cond_t,
    ).eval()


def sampler_of(
    transformer: QwenImageTransformer2DModel, loras: Sequence[LoadedLora] = ()
) -> Sampler:
    """Make a sampler with the shipped schedule and geometry."""
    checkpoint = Checkpoint.open(SHIPPED_CHECKPOINT)
    schedule = FlowMatchSchedule.from_config(checkpoint.config("scheduler"))
    return Sampler(transformer, schedule, checkpoint.family, "random", loras)


@cache
def random_sampler() -> Sampler:
    """Make a sampler of `random_transformer`; all tests share it."""
    return sampler_of(random_transformer())
