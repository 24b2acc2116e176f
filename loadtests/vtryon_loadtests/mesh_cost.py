"""Latency that the mesh adds: one try-on at a time by the scripted backend, over four routes.

    python -m vtryon_loadtests.mesh_cost [--rounds 5] [--requests 100] [--json]

- direct: five processes that call one another by gRPC.
- edge: the same through an Envoy.
- sidecars: an Envoy per process, mutual TLS; called at the pipeline's own port.
- edge and sidecars: the same with TLS at the edge.

Then, over two replicas of the encoders: the share of cached garment latents with routing by content
and with routing to the least loaded replica.
"""

from __future__ import annotations

import argparse
import asyncio
import configparser
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

import vtryon
from vtryon_loadtests.figures import percentile
from vtryon_loadtests.tensor_streaming import running

STEPS = 4
PERSON = bytes(range(256)) * 32
_ENCODERS = ("latent-encoder", "text-encoder")
_UP = (
    *("vtryon", "up", "--backend", "scripted", "--free-ports"),
    *("--stages", "latent-encoder,text-encoder,sampling,decoding,pipeline"),
)


_AT_ONCE = {"VTRYON_DRAIN_DELAY_SECONDS": "0"}  # nobody calls any more when a mesh ends here


@dataclass(slots=True)
class Road:
    """A route to the pipeline and its measurements: seconds, and seconds by stage."""

    name: str
    client: vtryon.Client
    latencies: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    hops: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MeshCostRow:
    """Milliseconds; `over_direct_ms` is the median of the rounds' differences of medians."""

    road: str
    p50_ms: float
    p99_ms: float
    over_direct_ms: float
    hops_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Hits:
    """The share of requests with cached latents."""

    balance: str
    requests: int
    found: float


@asynccontextmanager
async def roads(folder: Path) -> AsyncIterator[list[Road]]:
    """Start two meshes, without and with sidecars, and connect to both at two places."""
    async with AsyncExitStack() as stack:

        async def connect(target: str, **options: object) -> vtryon.Client:
            return await stack.enter_async_context(vtryon.Client(target, **options))  # type: ignore[call-overload]

        plain, meshed = folder / "plain", folder / "meshed"
        edge = stack.enter_context(running(*_UP, "--folder", str(plain), **_AT_ONCE))
        secure = stack.enter_context(running(*_UP, "--mtls", "--folder", str(meshed), **_AT_ONCE))
        tls = vtryon.Tls(ca_path=meshed / "certificates" / "ca.crt")
        yield [
            Road("direct", await connect(_pipeline(plain))),
            Road("edge", await connect(edge)),
            Road("sidecars", await connect(_pipeline(meshed))),
            Road("edge and sidecars", await connect(secure, tls=tls)),
        ]


def _pipeline(folder: Path) -> str:
    """Look up where a mesh's pipeline itself listens."""
    config = configparser.RawConfigParser()
    config.read(folder / "supervisord.conf")
    return config["program:pipeline"]["command"].split()[-1]


async def walk(road: Road, requests: int) -> None:
    """Measure a round on one road."""
    latencies = []
    for number in range(requests):
        garment = b"%d" % time.perf_counter_ns() * 400
        started = time.perf_counter()
        result = await road.client.try_on(PERSON, garment, steps=STEPS, seed=number)
        latencies.append(time.perf_counter() - started)
        road.hops.append({str(hop.stage): hop.total_seconds for hop in result.ledger.hops})
    road.latencies += latencies
    road.medians.append(statistics.median(latencies))


async def measure(rounds: int, requests: int) -> list[MeshCostRow]:
    """Measure all roads in turn, after a round that only warms up."""
    with tempfile.TemporaryDirectory() as folder:
        async with roads(Path(folder)) as found:
            for road in found:
                await walk(road, 10)
                road.latencies, road.medians, road.hops = [], [], []
            for _ in track(range(rounds), console=Console(stderr=True)):
                for road in found:
                    await walk(road, requests)
            return [_row(road, found[0]) for road in found]


def _row(road: Road, direct: Road) -> MeshCostRow:
    differences = [own - other for own, other in zip(road.medians, direct.medians, strict=True)]
    return MeshCostRow(
        road.name,
        1e3 * statistics.median(road.latencies),
        1e3 * percentile(road.latencies, 99),
        1e3 * statistics.median(differences),
        {stage: 1e3 * statistics.median(hop[stage] for hop in road.hops) for stage in road.hops[0]},
    )


async def measure_hits(garments: int = 20, rounds: int = 6) -> list[Hits]:
    """Ask for each garment several times, with two replicas of the encoders."""
    return [
        await _hits(name, described, garments, rounds)
        for name, described in _descriptions().items()
    ]


def _descriptions() -> dict[str, str]:
    spec = find_spec("vtryon_mesh")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    found = next(
        path for path in (package / "mesh.yaml", package.parent / "mesh.yaml") if path.exists()
    )
    text = found.read_text()
    return {
        "content": text,
        "least-request": text.replace("balance: content", "balance: least-request"),
    }


async def _hits(name: str, described: str, garments: int, rounds: int) -> Hits:
    replicas = [f"--replicas={encoder}=2" for encoder in _ENCODERS]
    hits = []
    with tempfile.TemporaryDirectory() as folder:
        description = Path(folder) / "mesh.yaml"
        description.write_text(described)
        mesh = Path(folder) / "mesh"
        options = ("--mtls", *replicas, "--folder", str(mesh), "--description", str(description))
        with running(*_UP, *options, **_AT_ONCE) as target:
            tls = vtryon.Tls(ca_path=mesh / "certificates" / "ca.crt")
            async with vtryon.Client(target, tls=tls) as client:
                for _ in range(rounds):
                    for number in range(garments):
                        run = client.try_on(PERSON, b"garment %d" % number, steps=1)
                        async for event in run:
                            match event:
                                case vtryon.StageStarted(stage, _, accepted):
                                    if stage == _ENCODERS[0] and accepted is not None:
                                        hits.append(bool(accepted.cached))
    return Hits(name, len(hits), sum(hits) / len(hits))


def show(rows: Sequence[MeshCostRow], hits: Sequence[Hits]) -> None:
    """Print two tables."""
    stages = list(rows[0].hops_ms)
    table = Table("", "p50", "p99", "over direct", *stages, box=None)
    for row in rows:
        hops = [f"{row.hops_ms[stage]:.1f}" for stage in stages]
        over = f"{row.over_direct_ms:+.1f} ms"
        table.add_row(row.road, f"{row.p50_ms:.1f} ms", f"{row.p99_ms:.1f} ms", over, *hops)
    found = Table("balance", "requests", "latents found", box=None)
    for one in hits:
        found.add_row(one.balance, str(one.requests), f"{one.found:.0%}")
    console = Console(width=120)
    console.print(table)
    console.print(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100, help="on each road in each round")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = asyncio.run(measure(given.rounds, given.requests))
    hits = asyncio.run(measure_hits())
    if given.json:
        print(json.dumps([*map(asdict, rows), *map(asdict, hits)]))
        return
    print(f"{given.rounds} rounds of {given.requests} requests, {STEPS} steps, one at a time")
    show(rows, hits)


if __name__ == "__main__":
    main()
