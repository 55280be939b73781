"""The paper's tables 5, 6, 12, 13 and 14 with our columns, as Markdown."""

from __future__ import annotations

from ..pages import NOT_MEASURED, table
from ..results import Row
from .measured import Measured, Rows
from .plans import (
    DROPOUTS,
    MAGNITUDES,
    OUR_FIRST_SIZES,
    OUR_MAGNITUDES,
    OUR_SIZES,
    SIZES,
    STAGES,
    TABLE_5,
    TABLE_12,
    TABLE_13,
    TABLE_14,
    V2,
    Plan,
    Printed,
    one_size,
)


def sizes(rows: list[Row]) -> str:
    """Table 5: image size by RandAugment magnitude."""
    found = Rows(rows)
    lines = []
    for magnitude, ours in OUR_MAGNITUDES.items():
        measured = [_accuracy(found, V2, one_size(s, ours)) for s in OUR_SIZES.values()]
        printed = [f"{TABLE_5[size, magnitude]:.1f}" for size in OUR_SIZES]
        lines.append((f"{ours:g}", *measured, f"{magnitude}", *printed))
    ours_at, paper_at = (f"{s} px" for s in OUR_SIZES.values()), (f"{s} px" for s in OUR_SIZES)
    header = ("magnitude", *ours_at, "paper: magnitude", *paper_at)
    return "\n\n".join([table(header, lines), *_source(found)])


def schedules(rows: list[Row]) -> str:
    """Table 6: what the first and the last stage are; planned, not measured."""
    lines = (
        ("stages", str(STAGES), "4", "4", "4"),
        ("image size", _range(SIZES), "128 to 300", "128 to 380", "128 to 380"),
        ("RandAugment magnitude", _range(MAGNITUDES), "5 to 15", "5 to 20", "5 to 25"),
        ("mixup alpha", "0", "0", "0 to 0.2", "0 to 0.5"),
        ("dropout", _range(DROPOUTS), "0.1 to 0.3", "0.1 to 0.4", "0.1 to 0.5"),
    )
    return table(("first to last stage", "here", "paper: S", "M", "L"), lines)


def networks(rows: list[Row]) -> str:
    """Table 12: progressive learning of several networks."""
    found = Rows(rows)
    lines = []
    for pair in TABLE_12:
        before, after = pair.plans
        cells = [_accuracy(found, pair.network, plan) for plan in pair.plans]
        cells += [_loss(found, pair.network, plan) for plan in pair.plans]
        for metric in ("multiply_adds", "process_seconds"):
            share = found.share(pair.network, after, before, metric)
            cells.append(NOT_MEASURED if share is None else f"{share:.2f}")
        lines.append((pair.title, *cells, *_printed(pair.paper)))
    header = (
        "network", "fixed size, %", "progressive, %", "log loss, fixed", "progressive",
        "multiply-adds, of fixed", "seconds, of fixed", "paper, %", "hours, of fixed",
    )  # fmt: skip
    return table(header, lines)


def adaptive(rows: list[Row]) -> str:
    """Table 13: regularisation that grows with the size, or is always strong."""
    found = Rows(rows)
    lines = []
    for pair in TABLE_13:
        cells = [_accuracy(found, pair.network, plan) for plan in pair.plans]
        cells.append(_gain(found, pair.network, *pair.plans))
        cells += [_loss(found, pair.network, plan) for plan in pair.plans]
        assert pair.paper is not None
        old, new = pair.paper.accuracy
        lines.append((pair.title, *cells, f"{old:.1f} to {new:.1f}", f"{new - old:+.1f}"))
    header = (
        "sizes", "always strong, %", "adaptive, %", "gain", "log loss, always strong", "adaptive",
        "paper, %", "gain",
    )  # fmt: skip
    return table(header, lines)


def stages(rows: list[Row]) -> str:
    """Table 14: the first size, and the number of stages."""
    found = Rows(rows)
    lines = []
    for (first, count), (hours, top1) in TABLE_14.items():
        plan = Plan((OUR_FIRST_SIZES[first], SIZES[1]), stages=count)
        macs = found.of(V2, plan, "multiply_adds")
        seconds = found.of(V2, plan, "process_seconds")
        cells = [_accuracy(found, V2, plan), _loss(found, V2, plan)]
        cells.append(f"{macs.mean:.2f}" if macs else NOT_MEASURED)
        cells.append(f"{seconds.mean:.0f}" if seconds else NOT_MEASURED)
        ours = f"{plan.sizes[0]} px, {count} stages"
        lines.append((ours, *cells, f"{first} px: {top1:.2f}", f"{hours:.1f}"))
    header = (
        "first size", "top-1, %", "log loss", "multiply-adds, T", "seconds", "paper, %", "hours",
    )  # fmt: skip
    return table(header, lines)


def _printed(paper: Printed | None) -> tuple[str, str]:
    """Accuracies, and the second time as a part of the first."""
    if paper is None or paper.hours is None:
        return "-", "-"
    old, new = paper.accuracy
    accuracy = f"{paper.network}: {old:.1f} to {new:.1f}"
    return accuracy, f"{paper.hours[1] / paper.hours[0]:.2f}"


def _range(values: tuple[float, float]) -> str:
    return " to ".join(f"{value:g}" for value in values)


def _accuracy(found: Rows, network: str, plan: Plan) -> str:
    return _with_deviation(found.of(network, plan, "top1"), 1)


def _loss(found: Rows, network: str, plan: Plan) -> str:
    return _with_deviation(found.of(network, plan, "log_loss"), 3)


def _with_deviation(measured: Measured | None, digits: int) -> str:
    if measured is None:
        return NOT_MEASURED
    return f"{measured.mean:.{digits}f} ± {measured.deviation:.{digits}f}"


def _gain(found: Rows, network: str, before: Plan, after: Plan) -> str:
    old, new = (found.of(network, plan, "top1") for plan in (before, after))
    return f"{new.mean - old.mean:+.1f}" if old and new else NOT_MEASURED


def _source(found: Rows) -> list[str]:
    where = dict.fromkeys(
        f"{r.gpu}, torch {r.torch}, {r.date}, commit {r.commit}" for r in found.rows
    )
    return [f"Measured on: {machine}." for machine in where]
