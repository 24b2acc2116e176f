"""Goodput and latency of a mesh under overload.

    python -m vtryon_loadtests.overload [--seconds 60] [--target HOST:PORT] [--json]

Finds the peak with 16 callers that never pause, then offers 80 % and 400 % of it with random
arrivals, independent of open requests. Reports finished and rejected requests and their latencies.
Without a target it serves the mesh itself, in its own process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import platform
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

import vtryon
from vtryon_loadtests.figures import percentile
from vtryon_loadtests.throughput import STEPS, Pictures, one_process


@dataclass(slots=True)
class Phase:
    """One load: requests offered, seconds until the last answer, and all latencies in seconds."""

    name: str
    offered_per_second: float
    seconds: float = math.nan
    finished: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Finished per second."""
        return len(self.finished) / self.seconds

    def as_json(self) -> dict[str, object]:
        """Give figures, no single request."""
        return {
            "name": self.name,
            "offered_per_second": self.offered_per_second,
            "goodput": self.goodput,
            "finished": len(self.finished),
            "refused": len(self.refused),
            "other": sorted(set(self.other)),
            "p50_ms": 1e3 * percentile(self.finished, 50),
            "p99_ms": 1e3 * percentile(self.finished, 99),
            "refused_p50_ms": 1e3 * percentile(self.refused, 50),
            "refused_p99_ms": 1e3 * percentile(self.refused, 99),
        }


class Load:
    """Requests of one kind, each with pictures that were never seen."""

    def __init__(self, client: vtryon.Client, pictures: Pictures) -> None:
        self._client = client
        self._pictures = pictures

    async def peak(self, seconds: float, callers: int = 16) -> Phase:
        """Let callers ask one request after another."""
        phase = Phase("peak", float("inf"))
        started = time.perf_counter()
        until = started + seconds

        async def call() -> None:
            while time.perf_counter() < until:
                await self._ask(phase, *self._pictures.fresh())

        await asyncio.gather(*(call() for _ in range(callers)))
        phase.seconds = time.perf_counter() - started
        return phase

    async def offer(self, name: str, per_second: float, seconds: float) -> Phase:
        """Send requests with random arrivals at a mean rate, independent of open requests."""
        phase, dice = Phase(name, per_second), random.Random(1)
        pauses = [dice.expovariate(per_second) for _ in range(round(per_second * seconds))]
        given = await asyncio.to_thread(lambda: [self._pictures.fresh() for _ in pauses])
        started = due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for pause, pictures in zip(pauses, given, strict=True):
                group.create_task(self._ask(phase, *pictures))
                due += pause
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
        phase.seconds = time.perf_counter() - started
        return phase

    async def _ask(self, phase: Phase, person: bytes, garment: bytes) -> None:
        started = time.perf_counter()
        try:
            await self._client.try_on(
                person, garment, self._pictures.prompt, steps=STEPS, previews=False
            )
        except vtryon.OverloadedError:
            phase.refused.append(time.perf_counter() - started)
        except vtryon.VtryonError as error:
            phase.other.append(str(error.reason))
        else:
            phase.finished.append(time.perf_counter() - started)


async def measure(target: str | None, seconds: float) -> list[Phase]:
    """Measure the three loads, after a short one that only warms up."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pictures = await asyncio.to_thread(Pictures, folder)
        client = await stack.enter_async_context(
            one_process(retry=False) if target is None else vtryon.Client(target, retry=False)
        )
        load = Load(client, pictures)
        await load.peak(min(5.0, seconds))
        peak = await load.peak(seconds / 3)
        usual = await load.offer("80 %", 0.8 * peak.goodput, seconds / 2)
        over = await load.offer("400 %", 4 * peak.goodput, seconds)
        return [peak, usual, over]


def show(phases: Sequence[Phase], console: Console) -> None:
    """Print a table, and the figures that count."""
    names = ("p50_ms", "p99_ms", "refused_p50_ms", "refused_p99_ms")
    table = Table("load", "finished/s", "refused", "else", "p50", "p99", box=None)
    table.add_column("refusal p50")
    table.add_column("p99")
    for phase in phases:
        found = phase.as_json()
        table.add_row(
            phase.name,
            f"{phase.goodput:.1f}",
            str(len(phase.refused)),
            ", ".join(sorted(set(phase.other))) or "0",
            *(f"{found[name]:.0f} ms" for name in names),
        )
    console.print(table)
    peak, usual, over = phases
    slower = percentile(over.finished, 99) / percentile(usual.finished, 99)
    console.print(
        f"goodput at 400 %: {over.goodput / peak.goodput:.0%} of the peak; "
        f"p99 {slower:.1f}× its value at 80 %",
        highlight=False,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload")
    parser.add_argument("--target", help="a mesh that runs already")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    phases = asyncio.run(measure(given.target, given.seconds))
    if given.json:
        print(json.dumps([phase.as_json() for phase in phases]))
        return
    print(f"{STEPS} steps, {platform.machine()}")
    show(phases, Console(width=110))


if __name__ == "__main__":
    main()
