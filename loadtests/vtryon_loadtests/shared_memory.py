"""Tensors to a Triton server on this machine: shared memory compared with gRPC.

    python -m vtryon_loadtests.shared_memory [--rounds 21] [--json]

Our client sends tensors of 16 KiB to 64 MiB to a model that only reads its input, alternately by
both ways. Ratios are of the same round. The client uses shared memory from the size where it wins.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vtryon_loadtests.tensor_streaming import running
from vtryon_services.triton.client import TritonPool
from vtryon_services.triton.contract import Model

SIZES = tuple(1 << power for power in (14, 16, 18, 20, 24, 26))
_CONFIG = """
backend: "python"
max_batch_size: 1
input { name: "TENSOR" data_type: TYPE_FP32 dims: -1 }
output { name: "FIRST" data_type: TYPE_FP32 dims: 1 }
instance_group { count: 1 kind: KIND_CPU }
"""
_MODEL = """
import torch
import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        return [self.look(request) for request in requests]

    def look(self, request):
        given = backend.get_input_tensor_by_name(request, "TENSOR")
        first = torch.from_dlpack(given.to_dlpack())[:, :1].clone()
        return backend.InferenceResponse([backend.Tensor.from_dlpack("FIRST", first)])
"""


@dataclass(frozen=True, slots=True)
class SharedMemoryRow:
    """Medians over the rounds, in milliseconds; the ratio is of shared memory to the wire."""

    bytes: int
    wire_ms: float
    shared_memory_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


async def ask(pool: TritonPool, tensor: np.ndarray) -> float:
    """Ask once; gives seconds."""
    started = time.perf_counter()
    found = await pool.infer(Model.DECODING, {"TENSOR": tensor})
    assert found["FIRST"][0] == tensor[0]
    return time.perf_counter() - started


async def measure(url: str, rounds: int) -> list[SharedMemoryRow]:
    """Measure all sizes by both ways, after a round that only warms up."""
    wire, shared = TritonPool([url], 0), TritonPool([url], 1)
    rows = []
    for size in track(SIZES, console=Console(stderr=True)):
        tensor = np.random.default_rng(0).random(size // 4, dtype=np.float32)
        pairs = [(await ask(wire, tensor), await ask(shared, tensor)) for _ in range(rounds + 1)]
        ratios = sorted(own / other for other, own in pairs[1:])
        rows.append(
            SharedMemoryRow(
                size,
                1e3 * statistics.median(pair[0] for pair in pairs[1:]),
                1e3 * statistics.median(pair[1] for pair in pairs[1:]),
                statistics.median(ratios),
                ratios[len(ratios) // 4],
                ratios[-1 - len(ratios) // 4],
            )
        )
    await wire.close()
    await shared.close()
    return rows


def show(rows: Sequence[SharedMemoryRow]) -> None:
    """Print a table."""
    table = Table("", "wire", "shared memory", "ratio (middle half)", box=None)
    for row in rows:
        size = f"{row.bytes >> 20} MiB" if row.bytes >= 1 << 20 else f"{row.bytes >> 10} KiB"
        ratio = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        table.add_row(size, f"{row.wire_ms:.1f} ms", f"{row.shared_memory_ms:.1f} ms", ratio)
    Console(width=100).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    ports = [f"--{name}-port=0" for name in ("grpc", "http", "metrics")]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "decoding"  # the client knows our models' names alone
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(_CONFIG)
        (model / "1" / "model.py").write_text(_MODEL)
        with running("vtryon", "triton", "up", folder, *ports) as url:
            rows = asyncio.run(measure(url, given.rounds))
    if given.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{given.rounds} rounds")
    show(rows)


if __name__ == "__main__":
    main()
