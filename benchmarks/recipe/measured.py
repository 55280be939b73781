"""What was measured of a plan, from the rows of the suite ``recipe``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev

from ..results import Row
from .plans import Plan


@dataclass(frozen=True)
class Measured:
    """Of one metric, a value for each seed, in the order of the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def deviation(self) -> float:
        """Of the sample; 0 of a single seed."""
        return stdev(self.values) if len(self.values) > 1 else 0.0


class Rows:
    """The rows of the suite, by network and plan."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = [row for row in rows if row.suite == "recipe"]

    def of(self, network: str, plan: Plan, metric: str) -> Measured | None:
        """None where it was not measured."""
        case = f"{network}: {plan.name}"
        found = sorted(
            (row.impl, float(row.value))
            for row in self.rows
            if row.case == case and row.metric == metric
        )
        return Measured(tuple(value for _, value in found)) if found else None

    def course(self, network: str, plan: Plan, metric: str) -> dict[float, float]:
        """By epoch."""
        case, prefix = f"{network}: {plan.name}", f"{metric} after epoch "
        found = {
            float(row.metric.removeprefix(prefix)): float(row.value)
            for row in self.rows
            if row.case == case and row.metric.startswith(prefix)
        }
        return dict(sorted(found.items()))

    def share(self, network: str, plan: Plan, of: Plan, metric: str) -> float | None:
        """The mean of a plan as a part of another's."""
        one, other = self.of(network, plan, metric), self.of(network, of, metric)
        return one.mean / other.mean if one and other else None
