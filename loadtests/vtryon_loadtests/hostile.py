"""The effect of a hostile caller on the latency of a good one, by interface.

    python -m vtryon_loadtests.hostile [--interface NAME] [--attack NAME ...] [--rounds 3] [--json]

The good caller asks for try-ons one after another, in each round first alone and then during the
attack, which runs in its own process. The mesh is scripted and computes nothing, so that only the
interface is measured. A row holds if all requests of the good caller succeed, and the median of the
rounds' p99 during the attack is at most twice that alone. Exit code 1: a row does not hold.

The attacker has the machine's cores in common with the servers and is limited by `nice` alone;
`attacker's cores` is the CPU time that it took itself. Figures of a machine that is busy with other
things say little.

An interface is a module with `ATTACKS`, coroutine functions by name that take a target and never
end, and `serve`, a context manager that gives a target and a good caller's call.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, cast

from rich.console import Console
from rich.table import Table

from vtryon_loadtests.figures import percentile

INTERFACES = {
    name: f"vtryon_loadtests.hostile_{name}" for name in ("edge", "grpc", "rest", "jobs", "kafka")
}
_ALL = "all"
_MOST_RATIO = 2.0
_PAUSE_SECONDS = 0.06  # with it, the good caller stays below the edge's requests per second
_WARM_SECONDS = 1.0
_REST_SECONDS = 2.0  # after an attack
_NICE = ("nice", "-n", "10")
# An attacker that takes so much of the cores may be what delays the good caller.
_MANY_CORES = 0.5

Call = Callable[[], Awaitable[None]]
Attack = Callable[[str], Awaitable[None]]


class Interface(Protocol):
    """A way in that is attacked."""

    ATTACKS: Mapping[str, Attack]

    def serve(self) -> AbstractAsyncContextManager[tuple[str, Call]]:
        """Start servers; gives the target and the good caller's call, which raises if it fails."""
        ...


@dataclass(slots=True)
class CallerRecord:
    """Requests of the good caller: the p99 of each round, and failures by message."""

    requests: int = 0
    p99_ms: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class AttackRow:
    """The effect of an attack on the good caller; `ratio` is that of the medians of p99."""

    interface: str
    attack: str
    requests: int
    success_percent: float
    p99_alone_ms: float
    p99_beside_ms: float
    ratio: float
    attacker_cores: float
    failures: dict[str, int]

    @property
    def holds(self) -> bool:
        """Whether the good caller was served as if it were alone."""
        return self.success_percent == 100 and self.ratio <= _MOST_RATIO

    @property
    def note(self) -> str:
        """Explain a row that does not hold."""
        if self.holds:
            return ""
        said = [f"{count} × {words}" for words, count in self.failures.items()]
        if self.attacker_cores >= _MANY_CORES:
            cores = f"{self.attacker_cores:.2f} of {os.cpu_count()} cores"
            said.append(f"the attacker itself took {cores}")
        return "; ".join(said)


async def measure(call: Call, seconds: float, seen: CallerRecord) -> None:
    """Let the good caller ask for a while."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        try:
            await call()
        except Exception as error:  # whatever it is, it is a failure of the good caller
            seen.failures[f"{type(error).__name__}: {error}"[:80]] += 1
        else:
            times.append(1e3 * (time.perf_counter() - started))
        seen.requests += 1
        await asyncio.sleep(_PAUSE_SECONDS)
    seen.p99_ms.append(percentile(times, 99))


@contextmanager
def attacking(interface: str, attack: str, target: str, cores: list[float]) -> Iterator[None]:
    """Run an attack in a process of its own, and note how many cores it took."""
    command = (*_NICE, sys.executable, "-m", "vtryon_loadtests.hostile", "--interface", interface)
    before, started = _children_seconds(), time.perf_counter()
    attacker = [*command, "--attack", attack, "--against", target]
    process = subprocess.Popen(attacker, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        yield
        if process.poll() is not None:
            raise RuntimeError(f"the attack {attack} ended by itself, with {process.returncode}")
    finally:
        process.kill()
        process.communicate()
        cores.append((_children_seconds() - before) / (time.perf_counter() - started))


def _children_seconds() -> float:
    """Return the CPU time of ended children: only the attacker ends between two calls."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def compare(
    name: str, attacks: Sequence[str], rounds: int, seconds: float
) -> list[AttackRow]:
    """Measure the good caller alone and during each attack, alternately."""
    interface = load(name)
    chosen = [one for one in interface.ATTACKS if not attacks or one in attacks]
    if not chosen:
        return []
    rows = []
    for attack in chosen:
        alone, beside, cores = CallerRecord(), CallerRecord(), list[float]()
        async with interface.serve() as (target, call):  # anew: an attack leaves jobs in queues
            await measure(call, _WARM_SECONDS, CallerRecord())
            for _ in range(rounds):
                await measure(call, seconds, alone)
                with attacking(name, attack, target, cores):
                    await asyncio.sleep(_WARM_SECONDS)
                    await measure(call, seconds, beside)
                await asyncio.sleep(_REST_SECONDS)
        rows.append(row_of(name, attack, alone, beside, cores))
        print(json.dumps(asdict(rows[-1])), file=sys.stderr, flush=True)
    return rows


def row_of(
    name: str, attack: str, alone: CallerRecord, beside: CallerRecord, cores: Sequence[float]
) -> AttackRow:
    """Make the row of an attack."""
    success = 100 * (1 - beside.failures.total() / max(1, beside.requests))
    before, after = statistics.median(alone.p99_ms), statistics.median(beside.p99_ms)
    shown = before, after, after / before, statistics.median(cores)
    return AttackRow(name, attack, beside.requests, success, *shown, dict(beside.failures))


def load(name: str) -> Interface:
    """Give an interface by name."""
    return cast("Interface", importlib.import_module(INTERFACES[name]))


def table_of(rows: Sequence[AttackRow]) -> Table:
    """Make the table for people."""
    table = Table("interface", "attack", "requests", "success", box=None)
    for title in ("p99 alone", "p99 beside", "ratio", "attacker's cores", "holds"):
        table.add_column(title)
    for row in rows:
        table.add_row(
            row.interface,
            row.attack,
            str(row.requests),
            f"{row.success_percent:.1f} %",
            f"{row.p99_alone_ms:.1f} ms",
            f"{row.p99_beside_ms:.1f} ms",
            f"{row.ratio:.2f}",
            f"{row.attacker_cores:.2f}",
            "yes" if row.holds else f"no {row.note}".strip(),
        )
    return table


async def run(given: argparse.Namespace) -> list[AttackRow]:
    """Measure the selected interfaces one after another."""
    names = INTERFACES if given.interface == _ALL else [given.interface]
    rows = []
    for name in names:
        rows += await compare(name, given.attack, given.rounds, given.seconds)
    return rows


def main() -> None:
    """Measure, or attack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--interface", choices=[_ALL, *INTERFACES], default=_ALL)
    parser.add_argument("--attack", action="append", default=[], help="This one alone; repeatable.")
    parser.add_argument("--against", help="A target: attack it until this process is ended.")
    parser.add_argument("--rounds", type=int, default=3, help="Of each row.")
    parser.add_argument("--seconds", type=float, default=4.0, help="Alone, and beside, per round.")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.against:
        attack = load(given.interface).ATTACKS[given.attack[0]]
        print("attacking", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(cast("Any", attack(given.against)))
        return
    rows = asyncio.run(run(given))
    if given.json:
        print(json.dumps([asdict(row) | {"holds": row.holds, "note": row.note} for row in rows]))
    else:
        Console(width=160).print(table_of(rows))
    sys.exit(not all(row.holds for row in rows))


if __name__ == "__main__":
    main()
