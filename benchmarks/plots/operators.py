"""The roofline: arithmetic reached by every operator over its operations a byte."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ops.cases import SUITES
from ..results import Row
from ._common import devices

_MARKERS = "os^vD<>P"


def draw(rows: list[Row], axes: Any) -> bool:
    ours = [r for r in rows if r.suite in SUITES and r.impl == "effv2"]
    points = {}
    for row in ours:
        if row.metric in ("bandwidth", "arithmetic"):
            points.setdefault(row.key[:3] + row.key[4:], {})[row.metric] = float(row.value)
    complete = {key: p for key, p in points.items() if len(p) == 2 and min(p.values()) > 0}
    if not complete:
        return False
    for marker, suite in zip(_MARKERS, SUITES, strict=True):
        mine = [p for key, p in complete.items() if key[0] == suite]
        # TFLOP/s over GB/s, times 1000: FLOPs a byte.
        x = [1000 * p["arithmetic"] / p["bandwidth"] for p in mine]
        axes.plot(x, [p["arithmetic"] for p in mine], marker, label=suite, alpha=0.7)
    _roof(rows, axes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs a byte that must be moved")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(f"effv2 operators under the measured ceilings\n{devices(ours)}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    return True


def _roof(rows: list[Row], axes: Any) -> None:
    ceilings = {r.case: float(r.value) for r in rows if r.suite == "ceilings"}
    if len(ceilings) == 2:
        low, high = axes.get_xlim()
        x = np.geomspace(max(low, 0.1), max(high, 1000.0), 50)
        roof = np.minimum(ceilings["matrix product"], x * ceilings["copy"] / 1000)
        axes.plot(x, roof, "k-", linewidth=1, label="measured ceilings")
