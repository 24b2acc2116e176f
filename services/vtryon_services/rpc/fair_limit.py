"""A limit of a process's resources, shared fairly among tenants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import metrics

from vtryon.errors import OverloadedError
from vtryon_services.runtime.metrics import Watched

_refused = metrics.get_meter("vtryon").create_counter(
    "vtryon.limits.refused", description="Calls refused because a limit was reached, by limit."
)
_RETRY_SECONDS = 1.0


class FairLimit:
    """Counts usage per tenant, and rejects requests over the limit.

    Callers without a tenant share one entry, bounded by the limit of the process only. When the
    process is full, tenants below an equal share still get theirs, up to one and a half times the
    limit in total; all other requests are rejected.

    Args:
        name: of the limit, for the metric.
        unit: what is counted, in the plural, for the error.
        limit: for the process.
        per_tenant: for one tenant.
    """

    def __init__(self, name: str, unit: str, limit: int, per_tenant: int) -> None:
        self.name = name
        self._unit = unit
        self._limit = limit
        self._per_tenant = per_tenant
        self._by_tenant: Counter[str] = Counter()
        self._held = 0
        _watched.add(self)

    @property
    def held(self) -> int:
        """Current usage of all tenants."""
        return self._held

    @contextmanager
    def holding(self, tenant: str, amount: int = 1) -> Iterator[None]:
        """Hold an amount until the block is left.

        Raises:
            OverloadedError: the tenant or the process would hold too much.
        """
        self._check(tenant, amount)
        self._by_tenant[tenant] += amount
        self._held += amount
        try:
            yield
        finally:
            self._held -= amount
            self._by_tenant[tenant] -= amount
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]

    def _check(self, tenant: str, amount: int) -> None:
        own = self._by_tenant[tenant] + amount
        if tenant and own > self._per_tenant:
            raise self._overloaded("this tenant has", own - amount, amount, self._per_tenant)
        if (total := self._held + amount) <= self._limit:
            return
        tenants = len(self._by_tenant) + (tenant not in self._by_tenant)
        share = self._limit // max(1, tenants)
        if own > share or total > self._limit + self._limit // 2:
            raise self._overloaded("this process has", self._held, amount, self._limit)

    def _overloaded(self, who: str, held: int, amount: int, limit: int) -> OverloadedError:
        _refused.add(1, {"limit": self.name})
        return OverloadedError(
            f"{who} {held} {self._unit}; {amount} more are over the limit of {limit}; "
            "try again later",
            metadata={"limit": str(limit)},
            retry_after_seconds=_RETRY_SECONDS,
        )


_watched: Watched[FairLimit] = Watched(lambda limit: limit.name, label="limit")
_watched.gauge("vtryon.limits.held", "What is held now, by limit.", lambda limit: limit.held)
