"""Where the time of a network goes, block by block, and how much of it is the floor."""

from __future__ import annotations

from typing import Any

from ..results import Row
from ._common import COLOURS, TITLES, devices, ordered


def draw(rows: list[Row], axes: Any) -> bool:
    found = [r for r in rows if r.suite == "roofline" and r.metric in ("block_us", "floor_us")]
    networks = list(dict.fromkeys(r.case.partition(":")[0] for r in found))
    if not networks:
        return False
    found = [r for r in found if r.case.startswith(f"{networks[0]}:")]
    cases = list(dict.fromkeys(r.case for r in found))
    names = ordered(r.impl for r in found)
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        for metric in ("block_us", "floor_us"):
            mine = [r for r in found if r.impl == name and r.metric == metric]
            places = [cases.index(r.case) + (i - (len(names) - 1) / 2) * height for r in mine]
            values = [float(r.value) / 1000 for r in mine]
            if metric == "block_us":
                axes.barh(places, values, height, color=COLOURS[name], label=TITLES[name])
            else:
                axes.plot(values, places, "k|", markersize=9, label="its floor" if i == 0 else None)
    axes.set_yticks(range(len(cases)), [c.partition(": ")[2] for c in cases], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds, all blocks of the kind together")
    axes.set_title(f"{networks[0]}, batch {found[0].batch}, {found[0].dtype}\n{devices(found)}")
    axes.legend(fontsize=8)
    axes.figure.set_figheight(max(4.0, 1.2 + 0.25 * len(cases) * len(names)))
    return True
