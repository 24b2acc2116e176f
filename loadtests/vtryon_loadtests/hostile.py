"""One hostile caller beside a good one: what the good one notices.

    python -m vtryon_loadtests.hostile [--interface NAME] [--attack NAME ...] [--seconds 5] [--json]

The good caller asks for try-ons one after another, first alone and then beside each attack; the
attacker is a process of its own. The mesh is scripted and computes nothing, so what is left is the
interface. A row holds where the good caller's success is 100 % and its p99 at most twice that of
its time alone. Figures of a machine that is busy with other things say little.

An interface is a module with `ATTACKS`, coroutine functions by name that take a target and never
end, and `serve`, a context manager that gives a target and a good caller's call.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

from rich.console import Console
from rich.table import Table

from vtryon_loadtests.figures import percentile

INTERFACES = {
    "grpc": "vtryon_loadtests.hostile_grpc",
    "rest": "vtryon_loadtests.hostile_rest",
}
ALONE = "alone"
_MOST_RATIO = 2.0
_PAUSE_SECONDS = 0.02
_WARM_SECONDS = 1.0

Call = Callable[[], Awaitable[None]]
Attack = Callable[[str], Awaitable[None]]


class Interface(Protocol):
    """A way in that is attacked."""

    ATTACKS: Mapping[str, Attack]

    def serve(self) -> AbstractAsyncContextManager[tuple[str, Call]]:
        """Start servers; gives the target and the good caller's call, which raises if it fails."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """What the good caller noticed of an attack."""

    attack: str
    requests: int
    success_percent: float
    p50_ms: float
    p99_ms: float
    ratio: float
    failures: dict[str, int]

    @property
    def holds(self) -> bool:
        """Whether the good caller was served as if it were alone."""
        return self.success_percent == 100 and self.ratio <= _MOST_RATIO


async def measure(name: str, call: Call, seconds: float, alone_p99_ms: float | None) -> Row:
    """Let the good caller ask for a while."""
    times: list[float] = []
    failures: Counter[str] = Counter()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        try:
            await call()
        except Exception as error:  # whatever it is, it is a failure of the good caller
            failures[f"{type(error).__name__}: {error}"[:80]] += 1
        else:
            times.append(1e3 * (time.perf_counter() - started))
        await asyncio.sleep(_PAUSE_SECONDS)
    requests = len(times) + failures.total()
    p99 = percentile(times, 99)
    ratio = 1.0 if alone_p99_ms is None else p99 / alone_p99_ms
    success = 100 * len(times) / max(1, requests)
    return Row(name, requests, success, percentile(times, 50), p99, ratio, dict(failures))


@contextmanager
def attacking(interface: str, attack: str, target: str) -> Iterator[None]:
    """Run an attack in a process of its own."""
    command = (sys.executable, "-m", "vtryon_loadtests.hostile", "--interface", interface)
    process = subprocess.Popen([*command, "--attack", attack, "--against", target])
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"the attack {attack} ended by itself, with {process.returncode}")
    finally:
        process.kill()
        process.wait()


async def compare(name: str, attacks: Sequence[str], seconds: float) -> list[Row]:
    """Measure the good caller alone, and beside each attack."""
    interface = load(name)
    async with interface.serve() as (target, call):
        await measure(ALONE, call, _WARM_SECONDS, None)
        rows = [await measure(ALONE, call, seconds, None)]
        for attack in attacks or interface.ATTACKS:
            with attacking(name, attack, target):
                await asyncio.sleep(_WARM_SECONDS)
                rows.append(await measure(attack, call, seconds, rows[0].p99_ms))
    return rows


def load(name: str) -> Interface:
    """Give an interface by name."""
    return cast("Interface", importlib.import_module(INTERFACES[name]))


def table_of(rows: Sequence[Row]) -> Table:
    """Make the table for people."""
    table = Table("attack", "requests", "success", "p50 ms", "p99 ms", "p99 / alone", "holds")
    for row in rows:
        shown = (f"{row.success_percent:.1f} %", f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}")
        holds = "yes" if row.holds else f"no {row.failures or ''}"
        table.add_row(row.attack, str(row.requests), *shown, f"{row.ratio:.2f}", holds)
    return table


def main() -> None:
    """Measure, or attack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--interface", choices=INTERFACES, default="rest")
    parser.add_argument("--attack", action="append", default=[], help="This one alone; repeatable.")
    parser.add_argument("--against", help="A target: attack it until this process is ended.")
    parser.add_argument("--seconds", type=float, default=5.0, help="Of each row.")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.against:
        attack = load(given.interface).ATTACKS[given.attack[0]]
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(cast("Any", attack(given.against)))
        return
    rows = asyncio.run(compare(given.interface, given.attack, given.seconds))
    if given.json:
        print(json.dumps([asdict(row) | {"holds": row.holds} for row in rows]))
    else:
        Console().print(table_of(rows))


if __name__ == "__main__":
    main()
