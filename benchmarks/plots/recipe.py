"""Progressive learning, as the suite ``recipe`` measured it: the paper's table 5, and the course of
a progressive training beside one of a fixed size."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..recipe.measured import Measured, Rows
from ..recipe.plans import FIXED, OUR_MAGNITUDES, OUR_SIZES, PROGRESSIVE, V2, one_size
from ..results import Row

#: Weak to strong, dark to light also in grey; the last two are those of the course.
_STRENGTHS = ("#56B4E9", "#0072B2", "#D55E00")
_FIXED, _PROGRESSIVE, _MAGNITUDE = "#999999", "#009E73", "#D55E00"
_DARK = "#00563F"  # of what is written on the colour of progressive


def sizes(rows: list[Row], axes: Any) -> bool:
    """Accuracy by image size, a line for each magnitude, with the deviation among seeds."""
    found = Rows(rows)
    ours = list(OUR_SIZES.values())
    drawn = False
    for colour, magnitude in zip(_STRENGTHS, OUR_MAGNITUDES.values(), strict=True):
        line = [(s, found.of(V2, one_size(s, magnitude), "top1")) for s in ours]
        points = [(size, measured) for size, measured in line if measured is not None]
        if points:
            _line(axes, points, colour, f"magnitude {magnitude:g}")
            drawn = True
    axes.set_xticks(ours, [f"{size} px" for size in ours])
    axes.margins(x=0.12)
    axes.set_xlabel("image size, in training and evaluation")
    axes.set_ylabel("held-out digits that are right, %")
    axes.set_title("What augmentation costs, by image size (the paper's table 5, on digits)")
    _tidy(axes)
    if drawn:
        axes.legend(frameon=False)
    return drawn


def course(rows: list[Row], axes: Any) -> bool:
    """Above, accuracy over the multiply-adds that it took; below, size and magnitude by epoch."""
    found = Rows(rows)
    plans = ((FIXED, _FIXED, "fixed size"), (PROGRESSIVE, _PROGRESSIVE, "progressive"))
    if not all(found.course(V2, plan, "top1") for plan, _, _ in plans):
        return False
    figure = axes.figure
    axes.remove()
    figure.set_size_inches(9, 6.4)
    above, below = figure.subplots(2, 1, height_ratios=(2, 1))
    for plan, colour, title in plans:
        top1, spent = (
            list(found.course(V2, plan, metric).values()) for metric in ("top1", "multiply_adds")
        )
        above.plot(spent, top1, color=colour, linewidth=2, label=f"{title}: {top1[-1]:.1f} %")
        above.plot(spent[-1], top1[-1], "o", color=colour, markersize=8)
    above.set_xlabel("multiply-adds so far, T")
    above.set_ylabel("held-out digits that are right, %")
    above.set_title("The course of a progressive training, and of one of a fixed size")
    above.set_xlim(left=0)
    above.legend(loc="lower right", frameon=False)
    _tidy(above)
    _schedule(below, found)
    return True


def _schedule(axes: Any, found: Rows) -> None:
    by_epoch = found.course(V2, PROGRESSIVE, "size")
    edges, size = np.array([0.0, *by_epoch]), np.array([*by_epoch.values()])
    magnitude = [*found.course(V2, PROGRESSIVE, "magnitude").values()]
    axes.stairs(size, edges, fill=True, color=_PROGRESSIVE, alpha=0.25)
    axes.stairs(size, edges, color=_PROGRESSIVE, linewidth=2)
    for begin in np.flatnonzero(np.diff(size, prepend=0)):
        place = edges[begin], size[begin]
        axes.annotate(f"{size[begin]:.0f} px", place, xytext=(5, -13), textcoords="offset points",
                      fontsize=9, color=_DARK)  # fmt: skip
    axes.set_xlabel("epoch")
    axes.set_ylabel("image size, px", color=_DARK)
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, 1.1 * max(size))
    axes.spines[["top"]].set_visible(False)
    other = axes.twinx()
    other.stairs(magnitude, edges, color=_MAGNITUDE, linewidth=2, linestyle="--", baseline=None)
    other.set_ylabel("RandAugment magnitude", color=_MAGNITUDE)
    other.set_ylim(-0.04 * max(magnitude), 1.1 * max(magnitude))
    other.spines[["top"]].set_visible(False)


def _line(axes: Any, points: list[tuple[int, Measured]], colour: str, label: str) -> None:
    at = [size for size, _ in points]
    means = np.array([measured.mean for _, measured in points])
    spread = np.array([measured.deviation for _, measured in points])
    axes.fill_between(at, means - spread, means + spread, color=colour, alpha=0.15, linewidth=0)
    axes.plot(at, means, "o-", color=colour, linewidth=2, markersize=7, label=label)
    for size, mean in zip(at, means, strict=True):
        axes.annotate(f"{mean:.1f}", (size, mean), xytext=(0, 8), textcoords="offset points",
                      ha="center", fontsize=9, color=colour)  # fmt: skip


def _tidy(axes: Any) -> None:
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
