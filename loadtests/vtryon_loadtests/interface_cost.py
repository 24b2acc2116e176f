"""Latency, rate and bytes of the same try-on through each interface.

    python -m vtryon_loadtests.interface_cost [--rounds 3] [--requests 40] [--backend torch]
                                              [--json]

One mesh, one bridge, and jobs in a SQLite file; interfaces take turns in every round, one request
at a time and eight at once. A relay counts bytes between caller and interface in both directions,
including headers, previews and the picture. The scripted backend computes nothing, so that the
remaining time is that of the interface.

- grpc: the SDK's try-on, with previews; grpc, no previews: without.
- rest: a form, answered with the picture; rest, events: an event per step, with previews.
- job: made, watched and fetched by gRPC; rest, job: an idempotent try-on, which is a job.
- hybrid: by Kafka, the ledger and the pipeline; kafka: by Kafka from stage to stage. Their bytes
  are all bytes through the broker, including those of the bridge.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

import vtryon
from vtryon_loadtests.figures import percentile
from vtryon_loadtests.kafka import KafkaCaller
from vtryon_loadtests.tensor_streaming import running
from vtryon_loadtests.throughput import Pictures

STEPS = 4
AT_ONCE = 8
_numbers = count()
Call = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class MeasuredInterface:
    """An interface and its measurements: seconds, requests per second by round, bytes."""

    name: str
    call: Call
    relay: CountingRelay
    latencies: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class InterfaceRow:
    """Of one interface; `rate_ratio`: requests per second relative to the first interface's."""

    interface: str
    p50_ms: float
    p95_ms: float
    per_second: float
    rate_ratio: float
    kib: float


class CountingRelay:
    """Passes bytes on between a port of its own and a server, and counts them."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._to = host, int(port)
        self.passed = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """Give the address to call instead of the server's."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            yield f"{host}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to, back = await asyncio.open_connection(*self._to)
        with suppress(asyncio.CancelledError):  # the measuring is over
            await asyncio.gather(
                self._pass(reader, back), self._pass(to, writer), return_exceptions=True
            )

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(256 * 1024):
                self.passed += len(data)
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def interfaces(pictures: Pictures, backend: str) -> AsyncIterator[list[MeasuredInterface]]:
    """Start mesh, jobs and bridge, each in a process of its own, and open every interface."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        serve = ("vtryon", "serve")
        port = ("--listen", "127.0.0.1:0")
        mesh = stack.enter_context(running(*serve, "all", "--backend", backend, *port))
        jobs = stack.enter_context(
            running(
                *(*serve, "jobs", *port),
                VTRYON_JOBS_PIPELINE_TARGET=mesh,
                VTRYON_JOBS_DATABASE_URL=f"sqlite:///{folder / 'jobs.sqlite'}",
                VTRYON_JOBS_ARTIFACTS_URL=str(folder / "artifacts"),
                VTRYON_JOBS_OUTBOX="true",
            )
        )
        rest = stack.enter_context(
            running(
                *(*serve, "rest", *port),
                VTRYON_REST_PIPELINE_TARGET=mesh,
                VTRYON_REST_JOBS_TARGET=jobs,
            )
        )
        relays = [CountingRelay(target) for target in (mesh, jobs, rest)]
        at_mesh, at_jobs, at_rest = [await stack.enter_async_context(one.open()) for one in relays]
        direct = await stack.enter_async_context(vtryon.Client(at_mesh))
        office = await stack.enter_async_context(vtryon.Client(at_jobs))
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{at_rest}", timeout=120)
        )

        topologies = await _open_kafka(stack, mesh, jobs, folder)

        async def by_kafka(caller: KafkaCaller) -> None:
            person, garment = pictures.fresh()
            await caller.draw(person, garment, steps=STEPS)

        async def try_on(previews: bool) -> None:
            person, garment = pictures.fresh()
            await direct.try_on(person, garment, steps=STEPS, previews=previews)

        async def job() -> None:
            person, garment = pictures.fresh()
            made = await office.jobs.create(person, garment, steps=STEPS, previews=False)
            async for _ in office.jobs.watch(made.id):
                pass
            await office.jobs.picture(made.id)

        async def post(**headers: str) -> None:
            person, garment = pictures.fresh()
            answer = await http.post(
                "/v1/try-ons",
                files=[("person", person), ("garments", garment)],
                data={"steps": STEPS},
                headers=headers,
            )
            answer.raise_for_status()

        yield [
            MeasuredInterface("grpc", lambda: try_on(True), relays[0]),
            MeasuredInterface("grpc, no previews", lambda: try_on(False), relays[0]),
            MeasuredInterface("rest", post, relays[2]),
            MeasuredInterface("rest, events", lambda: post(accept="text/event-stream"), relays[2]),
            MeasuredInterface("job", job, relays[1]),
            MeasuredInterface(
                "rest, job", lambda: post(**{"idempotency-key": f"{next(_numbers)}"}), relays[2]
            ),
            *(
                MeasuredInterface(name, partial(by_kafka, caller), relay)
                for name, (caller, relay) in topologies.items()
            ),
        ]


def bridge_variables(
    broker: str, registry: str, folder: Path, mesh: str, jobs: str, **more: str
) -> dict[str, str]:
    """Give the variables of a bridge to Kafka that makes its own topics."""
    values = {
        "BOOTSTRAP_SERVERS": broker,
        "REGISTRY_URL": f"http://{registry}",
        "CREATE_TOPICS": "true",
        "IDEMPOTENT": "false",
        "CLAIMS_URL": str(folder / "claims"),
        "PIPELINE_TARGET": mesh,
        "JOBS_TARGET": jobs,
        **more,
    }
    return {f"VTRYON_KAFKA_{name}": value for name, value in values.items()}


async def _open_kafka(
    stack: AsyncExitStack, mesh: str, jobs: str, folder: Path
) -> dict[str, tuple[KafkaCaller, CountingRelay]]:
    """Start broker, registry and a bridge for each topology, and connect to each."""
    ports = [free_port() for _ in range(2)]
    registry = f"127.0.0.1:{ports[0]}"
    stack.enter_context(process("kafka", "registry", "--listen", registry))
    broker = f"127.0.0.1:{ports[1]}"
    relay = CountingRelay(broker)
    at_broker = await stack.enter_async_context(relay.open())
    told = ("--listen", broker, "--advertise", at_broker)
    stack.enter_context(process("kafka", "broker", *told))
    for place in (registry, broker):
        await listening(place)
    callers = {}
    for topology, serves in (("hybrid", "jobs"), ("kafka", "all")):
        named = bridge_variables(
            *(at_broker, registry, folder, mesh, jobs),
            PREFIX=topology,
            TOPOLOGY=topology,
            SERVES=serves,
        )
        # The relay has to pass on what the bridge says when it begins, and when it ends.
        bridge = running("vtryon", "serve", "kafka", "--listen", "127.0.0.1:0", **named)
        await asyncio.to_thread(bridge.__enter__)
        stack.push_async_callback(asyncio.to_thread, bridge.__exit__, None, None, None)
        caller = KafkaCaller.open(at_broker, f"http://{registry}", topology)
        callers[topology] = (await stack.enter_async_context(caller), relay)
    return callers


@contextmanager
def process(*command: str) -> Iterator[None]:
    """Run one of `vtryon`'s commands until the block ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "vtryon", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as started:
        try:
            yield
        finally:
            started.kill()


async def listening(place: str) -> None:
    """Wait until a server listens at host:port."""
    host, _, port = place.rpartition(":")
    async with asyncio.timeout(20):
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.close()
                return
            await asyncio.sleep(0.05)


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


async def measure(rounds: int, requests: int, backend: str) -> list[InterfaceRow]:
    """Take turns, and give a row per interface."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = Pictures(Path(folder))
        async with interfaces(pictures, backend) as opened:
            for interface in opened:
                await interface.call()
            for _ in track(range(rounds), "rounds", console=Console(stderr=True)):
                for interface in opened:
                    await _alone(interface, requests)
                    await _together(interface, requests)
    first = opened[0]
    return [_row(interface, first) for interface in opened]


async def _alone(interface: MeasuredInterface, requests: int) -> None:
    before = interface.relay.passed
    for _ in range(requests):
        started = time.perf_counter()
        await interface.call()
        interface.latencies.append(time.perf_counter() - started)
    interface.bytes.append((interface.relay.passed - before) / requests)


async def _together(interface: MeasuredInterface, requests: int) -> None:
    left = iter(range(requests * 2))

    async def caller() -> None:
        for _ in left:
            await interface.call()

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    interface.rates.append(2 * requests / (time.perf_counter() - started))


def _row(interface: MeasuredInterface, first: MeasuredInterface) -> InterfaceRow:
    ratios = [one / other for one, other in zip(interface.rates, first.rates, strict=True)]
    return InterfaceRow(
        interface.name,
        1e3 * percentile(interface.latencies, 50),
        1e3 * percentile(interface.latencies, 95),
        statistics.median(interface.rates),
        statistics.median(ratios),
        statistics.median(interface.bytes) / 1024,
    )


def show(rows: Sequence[InterfaceRow]) -> Table:
    """Lay the rows out."""
    table = Table(
        "interface", "p50", "p95", f"{AT_ONCE} at once", "to the first", "moved", box=None
    )
    for row in rows:
        table.add_row(
            row.interface,
            f"{row.p50_ms:.1f} ms",
            f"{row.p95_ms:.1f} ms",
            f"{row.per_second:.1f}/s",
            f"{row.rate_ratio:.2f}",
            f"{row.kib:.1f} KiB",
        )
    return table


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--backend", choices=["scripted", "torch"], default="scripted")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = asyncio.run(measure(given.rounds, given.requests, given.backend))
    if given.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        Console().print(show(rows))


if __name__ == "__main__":
    main()
