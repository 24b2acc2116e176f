"""Stages and images per second at a real model's size, compared with diffusers.

    python -m vtryon_loadtests.real_size CHECKPOINT [--device cuda] [--dtype bf16]
        [--sizes 512 1024] [--steps 4 20] [--at-once 1 4] [--images 8] [--compiled] [--json]

CHECKPOINT is made by `vtryon models make --random`, or is a real one. diffusers' pipeline runs
first, in this process, and is freed; then the mesh serves the same weights in its own process.
A stage's time is its compute time in the ledger: in one process the stages share a GPU, so it
includes concurrent work of other stages. FLOPs are counted from the architecture. Each row is
printed on standard error as soon as it is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import vtryon
from vtryon_loadtests.diffusers_pipeline import diffusers_pipeline, draw
from vtryon_loadtests.figures import percentile
from vtryon_loadtests.tensor_streaming import running

# Dense bf16 TFLOP/s. Source: NVIDIA's data sheets of the H100 and H200 SXM, A100 SXM and L40S.
_PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0}
_PROMPT = "Put the shirt from picture 2 on the person in picture 1"


@dataclass(frozen=True, slots=True)
class RealSizeRow:
    """Measurements of one case."""

    side: str
    pixels: int
    steps: int
    at_once: int
    images_per_second: float
    p50_seconds: float
    p95_seconds: float
    stage_p50_seconds: dict[str, float]
    stage_p95_seconds: dict[str, float]
    teraflops: float


@dataclass(frozen=True, slots=True)
class Case:
    """A size of the target's side, steps, and requests at once."""

    side: int
    steps: int
    at_once: int


def transformer_flops(config: dict[str, Any], side: int, text_tokens: int, pictures: int) -> float:
    """Count the operations of one forward of one row: products by weights, and attention.

    A layer multiplies each token by 12·width² weights (attention 4, feed-forward 8), and attends
    over all tokens; an operation is a multiplication or an addition.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    picture_tokens = (side // 16) ** 2 * (1 + pictures)
    tokens = picture_tokens + text_tokens
    weights = 2 * 12 * width**2 * tokens
    attention = 4 * tokens**2 * width
    return float(config["num_layers"] * (weights + attention))


def photograph(side: int, number: int) -> bytes:
    """Make a picture of a side that was never seen before: smooth noise, PNG."""
    dice = np.random.default_rng(number)
    coarse = dice.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def peak_of(device: str) -> float | None:
    """Give the chip's peak in TFLOP/s, where it is known."""
    if not device.startswith("cuda"):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS.items() if known in name), None)


@contextmanager
def loaded(checkpoint: Path, device: str, dtype: torch.dtype) -> Iterator[Any]:
    """Load diffusers' pipeline during the block, and free its memory."""
    pipeline = diffusers_pipeline(checkpoint, dtype).to(device)
    yield pipeline
    del pipeline
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def time_diffusers(pipeline: Any, case: Case, images: int, count: float) -> RealSizeRow:
    """Draw pictures one after another."""
    pictures = [Image.open(io.BytesIO(photograph(case.side, number))) for number in range(2)]
    latencies = []
    for number in range(images + 1):
        started = time.perf_counter()
        draw(
            pipeline,
            pictures,
            number,
            prompt=_PROMPT,
            num_inference_steps=case.steps,
            width=case.side,
            height=case.side,
        )
        latencies.append(time.perf_counter() - started)
    return _row("diffusers", case, latencies[1:], sum(latencies[1:]), {}, count)


async def time_mesh(client: vtryon.Client, case: Case, images: int, count: float) -> RealSizeRow:
    """Draw pictures, so many at once, each pair of pictures new."""
    pairs = [[photograph(case.side, time.time_ns()) for _ in range(2)] for _ in range(images)]
    numbers = iter(range(images))
    latencies: list[float] = []
    stages: dict[str, list[float]] = defaultdict(list)

    async def work() -> None:
        for number in numbers:
            person, garment = pairs[number]
            started = time.perf_counter()
            result = await client.try_on(
                person,
                garment,
                _PROMPT,
                steps=case.steps,
                seed=number,
                width=case.side,
                height=case.side,
                previews=False,
                timeout_seconds=600,
            )
            latencies.append(time.perf_counter() - started)
            assert result.ledger is not None
            for hop in result.ledger.hops:
                if hop.stage is not None and hop.compute_seconds:
                    stages[hop.stage.value].append(hop.compute_seconds)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(case.at_once)))
    return _row("vtryon", case, latencies, time.perf_counter() - began, stages, count)


def _row(
    side: str,
    case: Case,
    latencies: Sequence[float],
    seconds: float,
    stages: dict[str, list[float]],
    count: float,
) -> RealSizeRow:
    rate = len(latencies) / seconds
    return RealSizeRow(
        side,
        case.side**2,
        case.steps,
        case.at_once,
        rate,
        statistics.median(latencies),
        percentile(latencies, 95),
        {name: statistics.median(values) for name, values in stages.items()},
        {name: percentile(values, 95) for name, values in stages.items()},
        rate * case.steps * count / 1e12,
    )


async def measure(given: argparse.Namespace) -> list[RealSizeRow]:
    """Measure diffusers, then the mesh."""
    config = json.loads((given.checkpoint / "transformer" / "config.json").read_text())
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

    def count(case: Case) -> float:
        return transformer_flops(config, case.side, 64, 2)

    alone = [Case(side, steps, 1) for side in given.sizes for steps in given.steps]
    rows: list[RealSizeRow] = []

    def keep(row: RealSizeRow) -> None:
        rows.append(row)
        print(row, file=sys.stderr)

    with loaded(given.checkpoint, given.device, dtypes[given.dtype]) as pipeline:
        for case in alone:
            keep(time_diffusers(pipeline, case, given.images, count(case)))
    options = ("--device", given.device, "--dtype", given.dtype)
    compiled = {"VTRYON_COMPILED": "true"} if given.compiled else {}
    where = ("--checkpoint", str(given.checkpoint), "--listen", "127.0.0.1:0")
    with running("vtryon", "serve", "all", *options, *where, **compiled) as target:
        async with vtryon.Client(target) as client:
            for case in alone:
                await time_mesh(client, case, 1, count(case))  # warms up
                for at_once in given.at_once:
                    crowd = Case(case.side, case.steps, at_once)
                    images = max(given.images, 2 * at_once)
                    keep(await time_mesh(client, crowd, images, count(case)))
    return rows


def show(rows: Sequence[RealSizeRow], peak: float | None, console: Console) -> None:
    """Print a table."""
    names = ("latent-encoder", "text-encoder", "sampling", "decoding")
    table = Table("", "size", "steps", "at once", "images/s", "p50", "p95", "TFLOP/s", "of peak")
    for name in names:
        table.add_column(f"{name} p50/p95")
    for row in rows:
        side = math.isqrt(row.pixels)
        stages = [
            f"{row.stage_p50_seconds[name]:.3f}/{row.stage_p95_seconds[name]:.3f}"
            if name in row.stage_p50_seconds
            else ""
            for name in names
        ]
        table.add_row(
            row.side,
            f"{side}²",
            str(row.steps),
            str(row.at_once),
            f"{row.images_per_second:.2f}",
            f"{row.p50_seconds:.3f} s",
            f"{row.p95_seconds:.3f} s",
            f"{row.teraflops:.3g}",
            f"{row.teraflops / peak:.0%}" if peak else "",
            *stages,
        )
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 20])
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--compiled", action="store_true", help="compile the sampler's blocks")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = asyncio.run(measure(given))
    if given.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        show(rows, peak_of(given.device), Console(width=200))


if __name__ == "__main__":
    main()
