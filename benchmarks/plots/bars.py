"""How many times as fast as eager channels_last every implementation is, network by network."""

from __future__ import annotations

from typing import Any

from ..results import Row
from ._common import COLOURS, TITLES, devices, ordered

_BASELINE = "speedup_vs_eager_nhwc"
_SUITES = ("models", "latency", "cpu")


def draw(rows: list[Row], axes: Any) -> bool:
    found = [r for r in rows if r.suite in _SUITES and r.metric == _BASELINE]
    cases = list(dict.fromkeys(_case(r) for r in found))
    names = ordered(r.impl for r in found)
    height = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        mine = [r for r in found if r.impl == name]
        places = [cases.index(_case(r)) + (i - (len(names) - 1) / 2) * height for r in mine]
        values = [float(r.value) for r in mine]
        spread = [
            [float(r.value) - float(r.p20) for r in mine],
            [float(r.p80) - float(r.value) for r in mine],
        ]
        axes.barh(places, values, height, xerr=spread, color=COLOURS[name], label=TITLES[name])
        for place, value in zip(places, values, strict=True):
            axes.annotate(f" {value:.2f}", (0, place), va="center", fontsize=8, color="black")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as eager channels_last (median, 20th to 80th percentile)")
    axes.set_title(devices(found))
    if found:
        axes.legend(fontsize=8)
        axes.figure.set_figheight(max(4.0, 1.2 + 0.22 * len(cases) * len(names)))
    return bool(found)


def _case(row: Row) -> str:
    network = row.case.partition(" ")[2] or row.case
    return f"{network} at {row.resolution}\n{row.suite}, batch {row.batch}, {row.dtype}"
