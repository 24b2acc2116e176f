"""Cost of padding rows of unequal length into one forward, compared with separate forwards.

    python -m vtryon_loadtests.padding [--rows 16] [--rounds 7] [--checkpoint FOLDER] [--json]

Draws mixes of requests as they come: prompts that differ by some tokens, guidance, two sizes. Does
one step of each mix with several limits of `PADDING`, in turn within every round: 0 puts only rows
of equal lengths together (buckets), a large one all rows into one forward. Ratios are of the time
per step to that with limit 0.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from vtryon.types import RopeLayout
from vtryon_loadtests.throughput import shipped_checkpoint
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.forward import PADDING, Forward, Prediction, divide
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.sampler import Sampler

_LIMITS = (0.0, 0.1, PADDING, 0.5, 10.0)
_PERSON, _SMALL = (8, 6), (4, 4)  # tokens of a target's rows and columns


@dataclass(frozen=True, slots=True)
class Mix:
    """A batch to step: how many tokens prompts have, and which share is of another size."""

    name: str
    text: tuple[int, int]
    small: float


@dataclass(frozen=True, slots=True)
class PaddingRow:
    """A limit on a mix: forwards of a step, padded tokens per token, time relative to limit 0."""

    mix: str
    limit: float
    forwards: int
    padded: float
    ratio: float


MIXES = (
    Mix("prompts of one length", (40, 40), 0.0),
    Mix("prompts of 30 to 50 tokens", (30, 50), 0.0),
    Mix("prompts of 10 to 300 tokens", (10, 300), 0.0),
    Mix("30 to 50 tokens, half of a smaller size", (30, 50), 0.5),
)


def draw_rows(mix: Mix, count: int, width: int) -> list[Prediction]:
    """Draw the rows of a step."""
    dice, torch_dice = random.Random(1), torch.Generator().manual_seed(1)
    rows = []
    for _ in range(count):
        sides = _SMALL if dice.random() < mix.small else _PERSON
        tokens, text = sides[0] * sides[1], dice.randint(*mix.text)
        shapes = ((1, *sides), (1, *_PERSON), (1, *_PERSON))
        references = 2 * _PERSON[0] * _PERSON[1]
        target, given, embeddings = (
            torch.randn(shape, generator=torch_dice)
            for shape in ((tokens, 64), (references, 64), (text, width))
        )
        rows.append(Prediction(target, given, embeddings, shapes, 0.7, RopeLayout.DIFFUSERS))
    return rows


@torch.inference_mode()
def measure(checkpoint: Path, count: int, rounds: int) -> list[PaddingRow]:
    """Measure every mix with every limit, after a round that only warms up."""
    placement = Placement.of("cpu", "fp32")
    sampler = Sampler.load(Checkpoint.open(checkpoint), placement)
    forward = Forward(sampler.transformer)
    results = []
    for mix in MIXES:
        rows = draw_rows(mix, count, sampler.width)
        ways = {limit: divide(rows, count, limit) for limit in _LIMITS}
        seconds: dict[float, list[float]] = {limit: [] for limit in _LIMITS}
        for number in range(rounds + 1):
            for limit, batches in ways.items():
                started = time.perf_counter()
                for batch in batches:
                    forward(rows, batch)
                if number:
                    seconds[limit].append(time.perf_counter() - started)
        own = sum(row.tokens for row in rows)
        for limit, batches in ways.items():
            ratios = [one / other for one, other in zip(seconds[limit], seconds[0.0], strict=True)]
            padded = sum(batch.tokens for batch in batches) / own - 1
            results.append(
                PaddingRow(mix.name, limit, len(batches), padded, statistics.median(ratios))
            )
    return results


def show(results: Sequence[PaddingRow], console: Console) -> None:
    """Print a table."""
    table = Table("mix", "limit", "forwards", "padding", "time", box=None)
    for one in results:
        chosen = " *" if one.limit == PADDING else ""
        table.add_row(
            one.mix,
            f"{one.limit:.0%}{chosen}",
            str(one.forwards),
            f"{one.padded:.0%}",
            f"{one.ratio:.2f}",
        )
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=16, help="of one step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--checkpoint", type=Path, default=shipped_checkpoint())
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results = measure(given.checkpoint, given.rows, given.rounds)
    if given.json:
        print(json.dumps([asdict(one) for one in results]))
        return
    print(
        f"{given.rows} rows, {given.rounds} rounds, {platform.machine()}; * is the sampler's limit"
    )
    show(results, Console(width=110))


if __name__ == "__main__":
    main()
