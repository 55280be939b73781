"""Where the time of a network must go: the floor of each part, by the way of running it. Computed,
not measured."""

from __future__ import annotations

from typing import Any

from ..results import NO_DEVICE, Row
from ..roofline.kernels import LEVELS

_COLOURS = {"ConvBNAct": "#56B4E9", "FusedMBConv": "#E69F00", "MBConv": "#009E73"}


def draw(rows: list[Row], axes: Any) -> bool:
    found = [r for r in rows if r.suite == "roofline" and r.gpu == NO_DEVICE]
    found = [r for r in found if r.metric.startswith("floor on ") and ": " in r.case]
    bars = list(dict.fromkeys((_network(r), r.impl) for r in found))
    ends = dict.fromkeys(bars, 0.0)
    shown: set[str] = set()
    for row in found:
        bar, kind, value = (_network(row), row.impl), _kind(row), float(row.value)
        label = None if kind in shown else kind
        axes.barh(
            bars.index(bar), value, 0.8, ends[bar], color=_COLOURS[kind], label=label, edgecolor="w"
        )
        shown.add(kind)
        ends[bar] += value
    for place, end in enumerate(ends.values()):
        axes.annotate(f" {end:.0f}", (end, place), va="center", fontsize=8)
    if not found:
        return False
    names = [f"{network}, {LEVELS[level].title}" for network, level in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("microseconds an image, bf16; one piece a group of equal blocks")
    axes.set_title(found[0].metric)
    axes.legend(fontsize=8)
    return True


def _network(row: Row) -> str:
    return f"{row.case.partition(': ')[0].partition(' ')[2]} at {row.resolution}"


def _kind(row: Row) -> str:
    return next(kind for kind in ("FusedMBConv", "MBConv", "ConvBNAct") if f" {kind} " in row.case)
