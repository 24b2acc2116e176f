"""Events as a person likes to see them: bars while it runs, a table when it is done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TimeElapsedColumn
from rich.table import Table

from vtryon.cli.console import text_column
from vtryon.events import (
    Event,
    Fit,
    Hop,
    Ledger,
    Queued,
    StageFinished,
    StageStarted,
    StepFinished,
    UnusedOption,
)
from vtryon.types import Stage

BESIDE_OTHERS = "· ran beside another stage"


class LiveProgress:
    """A bar per stage; sampling's counts its steps."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def wait_for_mesh(self, *, embedded: bool) -> None:
        """Say that the models are being loaded, until the first event."""
        if embedded:
            self._bars["mesh"] = self._progress.add_task("starting the mesh", total=None, note="")

    def show(self, event: Event) -> None:
        """Take note of an event."""
        if "mesh" in self._bars:
            self._progress.remove_task(self._bars.pop("mesh"))
        match event:
            case StageStarted(stage, subject, accepted):
                steps = accepted.steps if accepted and accepted.steps else 1
                self._bar(_label(stage, subject), steps)
            case Queued(stage, position):
                for label, bar in self._bars.items():
                    if label.startswith(str(stage)):
                        self._progress.update(bar, note=f"{position} ahead")
            case StepFinished(step, steps):
                bar = self._bar(str(Stage.SAMPLING), steps)
                self._progress.update(bar, completed=step, note=f"step {step} of {steps}")
            case StageFinished(stage, subject, seconds):
                bar = self._bar(_label(stage, subject), 1)
                total = next(task.total for task in self._progress.tasks if task.id == bar)
                self._progress.update(bar, completed=total, note=_duration(seconds))
                self._progress.stop_task(bar)
            case _:
                pass

    def _bar(self, label: str, total: int) -> TaskID:
        if label not in self._bars:
            self._bars[label] = self._progress.add_task(label, total=total, note="")
        return self._bars[label]


@contextmanager
def live_progress(console: Console, *, quiet: bool) -> Iterator[LiveProgress]:
    """Show progress bars on a terminal; show nothing elsewhere, or if `quiet`."""
    progress = Progress(
        text_column("{task.description:<26}"),
        BarColumn(bar_width=28),
        text_column("{task.fields[note]:<14}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(progress)
        yield LiveProgress(progress)


def ledger_table(ledger: Ledger) -> Table:
    """Create a table of the timings of each stage; a dot marks hops that ran in parallel."""
    table = Table(box=None, header_style="dim")
    for name in ("stage", "wait", "transfer", "compute", "total"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for hop in ledger.hops:
        table.add_row(*_row(hop), style="" if hop.critical else "dim")
    table.add_row("wall time", "", "", "", _duration(ledger.wall_seconds), style="bold")
    return table


def describe_fit(fit: Fit) -> str:
    """Say how a picture was brought to size."""
    if not fit.changed:
        kept = f"{fit.subject} stays {fit.to_width}×{fit.to_height}"
        return f"{kept}; {fit.note}" if fit.note else kept
    how = "padded at the border" if fit.method == "pad" else "scaled, its sides rounded"
    said = (
        f"{fit.subject} was {fit.from_width}×{fit.from_height}, fitted to "
        f"{fit.to_width}×{fit.to_height}, {how}"
    )
    return f"{said}; {fit.note}" if fit.note else said


def describe_unused(unused: UnusedOption) -> str:
    """Describe an option that had no effect, and why."""
    return f"{unused.field} has no effect: {unused.reason}"


def _row(hop: Hop) -> tuple[str, ...]:
    name = _label(hop.stage, hop.subject) + ("" if hop.critical else " ·")
    parts = (hop.queue_seconds, hop.transfer_seconds, hop.compute_seconds, hop.total_seconds)
    return (name, *map(_duration, parts))


def _label(stage: Stage | None, subject: str) -> str:
    return f"{stage} ({subject})" if subject else str(stage)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
