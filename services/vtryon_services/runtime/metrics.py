"""Figures that are read when an exporter asks for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

T = TypeVar("T")
Observer = Callable[[CallbackOptions], Iterator[Observation]]
_meter = metrics.get_meter("vtryon")
_dropped_previews = _meter.create_counter(
    "vtryon.previews.dropped", description="Previews that a slow reader did not get."
)


def count_dropped_preview(stage: str) -> None:
    """Count a preview that was not made or not sent, because a newer one was there."""
    _dropped_previews.add(1, {"stage": stage})


class Watched(Generic[T]):
    """Objects whose values are exported as metrics while they live, summed per label.

    Args:
        label_of: returns an object's label value, such as its stage.
        label: the label's name.
    """

    def __init__(self, label_of: Callable[[T], str], *, label: str = "stage") -> None:
        self._label_of = label_of
        self._label = label
        self._objects: WeakSet[T] = WeakSet()

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._objects))

    def add(self, one: T) -> None:
        """Watch an object."""
        self._objects.add(one)

    def counter(self, name: str, description: str, read: Callable[[T], int]) -> None:
        """Make a metric of a figure that only grows."""
        _meter.create_observable_counter(name, [self._observer(read)], description=description)

    def gauge(self, name: str, description: str, read: Callable[[T], int]) -> None:
        """Make a metric of a figure that comes and goes."""
        _meter.create_observable_gauge(name, [self._observer(read)], description=description)

    def _observer(self, read: Callable[[T], int]) -> Observer:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            totals: Counter[str] = Counter()
            for one in self:
                totals[self._label_of(one)] += read(one)
            for value, total in totals.items():
                yield Observation(total, {self._label: value})

        return observe
