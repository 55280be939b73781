"""Published accuracy over measured throughput: what the paper's figure 1 says of training, for
inference on the device at hand."""

from __future__ import annotations

from typing import Any

from ..catalogue import CATALOGUE
from ..results import Row
from ._common import COLOURS, TITLES, devices, ordered


def draw(rows: list[Row], axes: Any) -> bool:
    found = [r for r in rows if r.suite == "models" and r.metric == "throughput"]
    batch = max((int(r.batch) for r in found), default=0)
    networks = {f"{e.library} {e.name}": e for e in CATALOGUE.values() if e.top1 is not None}
    found = [
        r
        for r in found
        if int(r.batch) == batch
        and r.case in networks
        and r.resolution == str(networks[r.case].resolution)  # which the accuracy is published for
    ]
    for impl in ordered(r.impl for r in found):
        mine = sorted((r for r in found if r.impl == impl), key=lambda r: float(r.value))
        axes.plot(
            [float(r.value) for r in mine],
            [networks[r.case].top1 for r in mine],
            "o",
            color=COLOURS[impl],
            label=TITLES[impl],
        )
    for case in dict.fromkeys(r.case for r in found):
        fastest = max((r for r in found if r.case == case), key=lambda r: float(r.value))
        place = float(fastest.value), networks[case].top1
        axes.annotate(networks[case].title, place, xytext=(6, 4), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xlabel(f"images a second, batch {batch}")
    axes.set_ylabel("published ImageNet top-1, %")
    axes.set_title(devices(found))
    axes.grid(alpha=0.3)
    if found:
        axes.legend()
    return bool(found)
