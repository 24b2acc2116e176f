"""Time per picture of the engine alone, by stage: the floor of every mesh on this machine.

    python -m vtryon_loadtests.floor [--rounds 7] [--steps 4] [--checkpoint FOLDER] [--compiled]
        [--device cpu] [--dtype fp32] [--width 96] [--height 128] [--at-once 1 4 16] [--json]

Encodes, denoises and decodes batches of try-ons on one thread, without wire, event loop or picture
files. A stage's share says where a quicker kernel would pay.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from vtryon_loadtests.throughput import shipped_checkpoint
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.decoder import Decoder
from vtryon_services.engine.latent_encoder import VaeEncoder
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.plan import SamplingPlan
from vtryon_services.engine.sampler import Given, Sampler
from vtryon_services.engine.text_encoder import PromptEncoder

_PROMPT = "Put the shirt from picture 2 on the person in picture 1"
_NUMERICS = resolve(None)


@dataclass(frozen=True, slots=True)
class FloorRow:
    """So many try-ons at once: pictures per second, and milliseconds per picture of each stage."""

    at_once: int
    images_per_second: float
    stage_ms: dict[str, float]


class Engine:
    """All four stages of a checkpoint, on one device."""

    def __init__(self, folder: Path, placement: Placement, *, compiled: bool) -> None:
        checkpoint = Checkpoint.open(folder)
        self.latents = VaeEncoder.load(checkpoint, placement)
        self.text = PromptEncoder.load(checkpoint, placement)
        self.sampler = Sampler.load(checkpoint, placement, compiled=compiled)
        self.decoder = Decoder.load(checkpoint, placement)

    def draw(self, people: Sequence[Image.Image], steps: int) -> dict[str, float]:
        """Draw a batch; gives the seconds of each stage."""
        seconds: dict[str, float] = {}

        def timed(stage: str, work: Callable[[], Any]) -> Any:
            started = time.perf_counter()
            found = work()
            seconds[stage] = time.perf_counter() - started
            return found

        pixels = [self.latents.fit(one, _NUMERICS).pixels for one in people for _ in range(2)]
        asked = [self.text.prepare([_PROMPT], [one, one], _NUMERICS)[0] for one in people]
        encoded = timed("latent-encoder", lambda: self.latents.encode(pixels))
        embedded = timed("text-encoder", lambda: self.text.embed(asked))
        samples = []
        for number in range(len(people)):
            references = encoded[2 * number : 2 * number + 2]
            _, height, width = references[0].shape
            plan = SamplingPlan(
                numerics=_NUMERICS,
                width=8 * width,
                height=8 * height,
                sigmas=self.sampler.sigmas(_NUMERICS, steps, 8 * width, 8 * height, 1.0),
                seed=number,
            )
            samples.append(self.sampler.begin(plan, Given(embedded[number], None, references)))

        def sample() -> None:
            for _ in range(steps):
                self.sampler.advance(samples)

        timed("sampling", sample)
        timed("decoding", lambda: self.decoder.decode([one.latents() for one in samples]))
        return seconds


def measure(given: argparse.Namespace) -> list[FloorRow]:
    """Measure every size in turn within each round, after one that only warms up."""
    placement = Placement.of(given.device, given.dtype)
    engine = Engine(given.checkpoint, placement, compiled=given.compiled)
    shape = (given.height, given.width, 3)
    people = [
        Image.fromarray(torch.randint(0, 256, shape, dtype=torch.uint8).numpy())
        for _ in range(max(given.at_once))
    ]
    found: dict[int, list[dict[str, float]]] = {at_once: [] for at_once in given.at_once}
    for number in range(given.rounds + 1):
        for at_once, rows in found.items():
            seconds = engine.draw(people[:at_once], given.steps)
            if number:
                rows.append(seconds)
    return [_row(at_once, rows) for at_once, rows in found.items()]


def _row(at_once: int, rows: Sequence[dict[str, float]]) -> FloorRow:
    whole = statistics.median(sum(seconds.values()) for seconds in rows)
    stages = {
        stage: 1e3 * statistics.median(seconds[stage] for seconds in rows) / at_once
        for stage in rows[0]
    }
    return FloorRow(at_once, at_once / whole, stages)


def show(rows: Sequence[FloorRow], console: Console) -> None:
    """Print a table."""
    table = Table("at once", "images/s", *(f"{stage}, ms" for stage in rows[0].stage_ms), box=None)
    for row in rows:
        times = (f"{value:.1f}" for value in row.stage_ms.values())
        table.add_row(str(row.at_once), f"{row.images_per_second:.1f}", *times)
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--checkpoint", type=Path, default=shipped_checkpoint())
    parser.add_argument("--compiled", action="store_true", help="compile the sampler's blocks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = measure(given)
    if given.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(
        f"{given.rounds} rounds, {given.steps} steps, {given.width} × {given.height}, "
        f"{given.device} ({platform.machine()}), {given.dtype}; per picture"
    )
    show(rows, Console(width=110))


if __name__ == "__main__":
    main()
