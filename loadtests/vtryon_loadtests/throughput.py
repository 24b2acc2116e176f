"""Try-ons per second and their latencies, compared with diffusers on the same checkpoint.

    python -m vtryon_loadtests.throughput [--rounds 3] [--images 48] [--triton] [--plot FILE]
                                          [--json]

Sides take turns in every round, on the same machine and the same pictures:

- diffusers: QwenImageEditPlusPipeline in this process, one picture after another (it refuses more).
- embedded: our mesh in a process of its own, at concurrency 1, 4 and 16; cold: every request brings
  pictures that were never seen; warm: the same pictures again, so that encoders answer from memory.
- processes: the same, cold, through five gRPC processes over TCP.
- Triton: the mesh in one process, cold, its arithmetic in a tritonserver (see `make triton`), by
  the Triton backend of four stages, and as one request of the ensemble.

Ratios are taken within a round: the machine's moods hit both sides.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import vtryon
from vtryon_loadtests.figures import percentile
from vtryon_loadtests.tensor_streaming import running

STEPS = 4
CONCURRENCIES = (1, 4, 16)
_STAGES = ("latent_encoder", "text_encoder", "sampling", "decoding")


@dataclass(frozen=True, slots=True)
class Round:
    """One side's part in one round: latencies in seconds, and the whole round's."""

    seconds: float
    latencies: Sequence[float]
    first_previews: Sequence[float] = ()
    hops: Sequence[dict[str, float]] = ()

    @property
    def images_per_second(self) -> float:
        """How many were drawn per second."""
        return len(self.latencies) / self.seconds


@dataclass(slots=True)
class Side:
    """A way to draw pictures, and its measurements by round."""

    name: str
    draw: Callable[[int], object]
    rounds: list[Round] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ThroughputRow:
    """Medians over the rounds; the ratio is of images per second to diffusers', with its range.

    `hops_ms` is the ledger: what each stage took, the encoders side by side.
    """

    side: str
    images_per_second: float
    ratio: float
    ratio_low: float
    ratio_high: float
    p50_ms: float
    p95_ms: float
    p50_ratio: float
    first_preview_ms: float | None
    hops_ms: dict[str, float]


class Pictures:
    """One example; `fresh` gives it with a few pixels changed, never the same ones again."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "vtryon", "example-pair", "--out", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        self.person = Image.open(folder / "person.png").convert("RGB")
        self.garment = Image.open(folder / "garment.png").convert("RGB")
        self.prompt = (folder / "prompt.txt").read_text().strip()
        self._numbers = itertools.count()

    def fresh(self) -> tuple[bytes, bytes]:
        """Give person and garment, as PNG."""
        number = next(self._numbers)
        return _png(self.person, number), _png(self.garment, number)

    def same(self) -> tuple[bytes, bytes]:
        """Give person and garment unchanged."""
        return _png(self.person, 0), _png(self.garment, 0)


def _png(picture: Image.Image, number: int) -> bytes:
    pixels = np.asarray(picture).copy()
    pixels[0, :8, 0] = [(number >> (4 * place)) & 15 for place in range(8)]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def draw_with_diffusers(checkpoint: Path, pictures: Pictures) -> Callable[[int], Round]:
    """Load the pipeline; returns a function that draws one round."""
    from vtryon_loadtests.diffusers_pipeline import diffusers_pipeline, draw, reference_area

    pipeline = diffusers_pipeline(checkpoint)
    size = pictures.person.size

    def work(count: int) -> Round:
        latencies = []
        with reference_area(size[0] * size[1]):
            for number in range(count):
                started = time.perf_counter()
                draw(
                    pipeline,
                    [pictures.person, pictures.garment],
                    number,
                    prompt=pictures.prompt,
                    num_inference_steps=STEPS,
                    width=size[0],
                    height=size[1],
                )
                latencies.append(time.perf_counter() - started)
        return Round(sum(latencies), latencies)

    return work


async def draw_with_mesh(
    client: vtryon.Client,
    given: Sequence[tuple[bytes, bytes]],
    prompt: str,
    concurrency: int,
) -> Round:
    """Draw pictures, so many at a time."""
    waiting = iter(enumerate(given))
    latencies: list[float] = []
    previews: list[float] = []
    hops: list[dict[str, float]] = []

    async def work() -> None:
        for number, (person, garment) in waiting:
            started = time.perf_counter()
            run = client.try_on(person, garment, prompt, steps=STEPS, seed=number)
            seen = False
            async for event in run:
                if isinstance(event, vtryon.Preview) and not seen:
                    seen = True
                    previews.append(time.perf_counter() - started)
            latencies.append(time.perf_counter() - started)
            if (ledger := (await run).ledger) is not None:
                hops.append({str(hop.stage): hop.total_seconds for hop in ledger.hops})

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return Round(time.perf_counter() - began, latencies, previews, hops)


@asynccontextmanager
async def one_process(*, retry: bool = True) -> AsyncIterator[vtryon.Client]:
    """Serve everything in one process, and connect to it."""
    with running("vtryon", "serve", "all", "--listen", "127.0.0.1:0") as target:
        async with vtryon.Client(target, retry=retry) as client:
            yield client


@asynccontextmanager
async def five_processes() -> AsyncIterator[vtryon.Client]:
    """Serve each stage and the pipeline in a process of its own, and connect to the pipeline."""
    async with AsyncExitStack() as stack:
        variables = {}
        for stage in _STAGES:
            own = {f"VTRYON_{stage.upper()}_LISTEN": "127.0.0.1:0"}
            command = f"vtryon_services.stages.{stage}"
            variables[f"VTRYON_PIPELINE_{stage.upper()}_TARGET"] = stack.enter_context(
                running(command, **own)
            )
        variables["VTRYON_PIPELINE_LISTEN"] = "127.0.0.1:0"
        target = stack.enter_context(running("vtryon_services.pipeline", **variables))
        yield await stack.enter_async_context(vtryon.Client(target))


@asynccontextmanager
async def on_triton() -> AsyncIterator[tuple[vtryon.Client, vtryon.Client]]:
    """Serve with the arithmetic in a Triton server: four stages and a pipeline; an ensemble."""
    ports = [f"--{name}-port=0" for name in ("grpc", "http", "metrics")]
    serve = ("vtryon", "serve", "--listen", "127.0.0.1:0")
    with tempfile.TemporaryDirectory() as folder:
        export = (sys.executable, "-m", "vtryon", "models", "export-triton", f"{folder}/models")
        await asyncio.to_thread(subprocess.run, export, check=True, capture_output=True)
        with (
            running("vtryon", "triton", "up", f"{folder}/models", *ports) as url,
            running(*serve, "all", "--backend", "triton", VTRYON_TRITON_URL=url) as stages,
            running(*serve, "pipeline", "--topology", "ensemble", VTRYON_TRITON_URL=url) as whole,
        ):
            async with vtryon.Client(stages) as by_stages, vtryon.Client(whole) as by_ensemble:
                yield by_stages, by_ensemble


async def measure(
    checkpoint: Path, rounds: int, images: int, console: Console, *, triton: bool = False
) -> list[ThroughputRow]:
    """Measure all sides in turn, after one round that only warms up."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pictures = await asyncio.to_thread(Pictures, folder)
        diffusers = draw_with_diffusers(checkpoint, pictures)
        embedded = await stack.enter_async_context(one_process())
        processes = await stack.enter_async_context(five_processes())

        async def reference(count: int) -> Round:
            return await asyncio.to_thread(diffusers, count)

        sides = [Side("diffusers, one after another", reference)]
        meshes = [
            ("one process, cold", embedded, False),
            ("one process, warm", embedded, True),
            ("five processes, cold", processes, False),
        ]
        if triton:
            by_stages, by_ensemble = await stack.enter_async_context(on_triton())
            meshes.append(("Triton behind one process, cold", by_stages, False))
            meshes.append(("Triton's ensemble, cold", by_ensemble, False))
        for name, client, warm in meshes:
            for concurrency in CONCURRENCIES:

                async def draw(count: int, client=client, warm=warm, at=concurrency) -> Round:  # type: ignore[no-untyped-def]
                    given = [pictures.same() if warm else pictures.fresh() for _ in range(count)]
                    return await draw_with_mesh(client, given, pictures.prompt, at)

                sides.append(Side(f"{name}, {concurrency} at once", draw))
        with Progress(console=console) as progress:
            bar = progress.add_task("rounds", total=(rounds + 1) * len(sides))
            for number in range(rounds + 1):
                for side in sides:
                    measured = await side.draw(images)  # type: ignore[misc]
                    if number:
                        side.rounds.append(measured)
                    progress.advance(bar)
        return [_row(side, sides[0]) for side in sides]


def _row(side: Side, reference: Side) -> ThroughputRow:
    pairs = list(zip(side.rounds, reference.rounds, strict=True))
    ratios = sorted(own.images_per_second / other.images_per_second for own, other in pairs)
    latencies = [latency for one in side.rounds for latency in one.latencies]
    previews = [seconds for one in side.rounds for seconds in one.first_previews]
    hops = [hop for one in side.rounds for hop in one.hops]
    return ThroughputRow(
        side.name,
        statistics.median(one.images_per_second for one in side.rounds),
        statistics.median(ratios),
        ratios[0],
        ratios[-1],
        1e3 * statistics.median(latencies),
        1e3 * percentile(latencies, 95),
        statistics.median(
            statistics.median(own.latencies) / statistics.median(other.latencies)
            for own, other in pairs
        ),
        1e3 * statistics.median(previews) if previews else None,
        {
            stage: 1e3 * statistics.median(hop[stage] for hop in hops)
            for stage in (hops[0] if hops else ())
        },
    )


def show(rows: Sequence[ThroughputRow], console: Console) -> None:
    """Print a table."""
    table = Table("", "images/s", "ratio (range)", "p50", "p95", "p50 ratio", "preview", box=None)
    for row in rows:
        table.add_row(
            row.side,
            f"{row.images_per_second:.1f}",
            f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})",
            f"{row.p50_ms:.0f} ms",
            f"{row.p95_ms:.0f} ms",
            f"{row.p50_ratio:.2f}",
            "" if row.first_preview_ms is None else f"{row.first_preview_ms:.0f} ms",
        )
    console.print(table)
    stages = next(row.hops_ms for row in rows if row.hops_ms)
    ledger = Table("hops, p50", *stages, box=None)
    for row in rows:
        if row.hops_ms:
            ledger.add_row(
                row.side, *(f"{milliseconds:.0f} ms" for milliseconds in row.hops_ms.values())
            )
    console.print(ledger)


def plot(rows: Sequence[ThroughputRow], path: Path) -> None:
    """Draw images per second as bars, with the range of the ratios."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    names, ratios = [row.side for row in rows], [row.ratio for row in rows]
    low = [row.ratio - row.ratio_low for row in rows]
    high = [row.ratio_high - row.ratio for row in rows]
    axes.barh(names[::-1], ratios[::-1], xerr=[low[::-1], high[::-1]], color="#4a78b0", capsize=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("images per second, in units of diffusers' (bars: median; whiskers: range)")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def shipped_checkpoint() -> Path:
    """Give the folder of the checkpoint that ships with the server package."""
    spec = find_spec("vtryon_services")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "mannequin" / "checkpoint"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=48, help="of each side in each round")
    parser.add_argument("--triton", action="store_true", help="with a Triton server as well")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    console = Console(stderr=True)
    rows = asyncio.run(
        measure(shipped_checkpoint(), given.rounds, given.images, console, triton=given.triton)
    )
    if given.plot:
        plot(rows, given.plot)
    if given.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{given.rounds} rounds of {given.images} images, {STEPS} steps, {platform.machine()}")
    show(rows, Console(width=120))


if __name__ == "__main__":
    main()
