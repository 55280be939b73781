"""A training in one picture: image size, regularisation, loss and accuracy over its epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from . import checkpoints
from .extras import extra
from .logs import EVALUATIONS, POINTS
from .records import Evaluation, Point, read

# Told apart by people who do not see all colours (Okabe and Ito).
_BLUE, _GREEN, _RED, _PURPLE = "#0072B2", "#009E73", "#D55E00", "#CC79A7"
_NUMBERED = 8  # stages at most that have their values written beside them
_SMOOTHED = 100  # parts of the picture's width that loss is averaged over


@dataclass(frozen=True)
class _Span:
    """A stage: its first point, and the epochs that it lasted."""

    point: Point
    begin: float
    end: float


@dataclass(frozen=True)
class _Curve:
    """A value a stage. ``above``: whether its number stands above the line, or below it."""

    name: str
    colour: str
    values: Sequence[float]
    above: Sequence[bool]


def draw(output: Path) -> Path:
    """Draws steps.csv and evaluations.csv of the folder into its summary.png, as much as there is
    of them. Returns the picture's path. Raises RecipeError."""
    with extra():
        from matplotlib.figure import Figure
    points = read(output / POINTS, Point)
    evaluations = read(output / EVALUATIONS, Evaluation)
    spans = _spans(points)
    firsts = [span.point for span in spans]

    figure = Figure(figsize=(9, 8), layout="constrained")
    panels = size, magnitude, rates, loss = figure.subplots(
        4, sharex=True, height_ratios=(3, 2, 3, 5)
    )
    above = [True] * len(spans)
    sizes = _Curve("image size", _BLUE, [point.size for point in firsts], above)
    magnitudes = _Curve("RandAugment", _RED, [point.magnitude for point in firsts], above)
    _draw_panel(size, "pixels", [sizes], spans)
    _draw_panel(magnitude, "magnitude", [magnitudes], spans)
    _draw_panel(rates, "rate, alpha", _rates(firsts), spans)
    _draw_loss(loss, points)
    _draw_accuracy(loss.twinx(), evaluations)
    figure.align_ylabels(panels)
    for axes in panels:
        for span in spans[1::2]:
            axes.axvspan(span.begin, span.end, color="black", alpha=0.05, linewidth=0)
    loss.set_xlabel("epoch")
    epochs = [point.epoch for point in points] + [found.epoch for found in evaluations]
    loss.set_xlim(0, max(epochs, default=1.0))
    figure.suptitle(_title(evaluations), fontsize=12)

    path = output / "summary.png"
    checkpoints.write(path, lambda file: figure.savefig(file, format="png", dpi=110))
    return path


def _spans(points: Sequence[Point]) -> list[_Span]:
    spans: list[_Span] = []
    for _, group in groupby(points, key=lambda point: point.stage):
        stage = list(group)
        spans.append(_Span(stage[0], spans[-1].end if spans else 0.0, stage[-1].epoch))
    return spans


def _rates(points: Sequence[Point]) -> list[_Curve]:
    """The numbers stand where the other line is not."""
    dropout, mixup = [p.dropout for p in points], [p.mixup for p in points]
    above = [d >= m for d, m in zip(dropout, mixup, strict=True)]
    return [
        _Curve("dropout", _PURPLE, dropout, above),
        _Curve("mixup", _GREEN, mixup, [not side for side in above]),
    ]


def _draw_panel(axes: Any, unit: str, curves: Sequence[_Curve], spans: Sequence[_Span]) -> None:
    axes.set_title(" and ".join(curve.name for curve in curves), loc="left", fontsize=10)
    axes.set_ylabel(unit)
    highest = max((value for curve in curves for value in curve.values), default=0.0) or 1.0
    below = not all(all(curve.above) for curve in curves)
    axes.set_ylim(-0.3 * highest if below else 0.0, 1.35 * highest)
    for curve in curves:
        _draw_curve(axes, curve, spans)
    if len(curves) > 1 and spans:
        # On the title's line: nothing is drawn there.
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=9
        )


def _draw_curve(axes: Any, curve: _Curve, spans: Sequence[_Span]) -> None:
    """A horizontal line a stage, with its value at the middle if stages are few."""
    for span, value, above in zip(spans, curve.values, curve.above, strict=True):
        name = curve.name if span is spans[0] else None
        axes.hlines(value, span.begin, span.end, color=curve.colour, linewidth=2.5, label=name)
        if len(spans) <= _NUMBERED:
            axes.annotate(
                f"{value:.3g}",
                ((span.begin + span.end) / 2, value),
                xytext=(0, 4 if above else -4),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=9,
                color=curve.colour,
            )


def _draw_loss(axes: Any, points: Sequence[Point]) -> None:
    axes.set_title("loss and accuracy", loc="left", fontsize=10)
    axes.set_ylabel("training loss", color=_BLUE)
    finite = [point for point in points if math.isfinite(point.loss)]
    epochs, losses = [p.epoch for p in finite], [p.loss for p in finite]
    axes.plot(epochs, losses, color=_BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(epochs, _smoothed(losses), color=_BLUE, linewidth=1.8)
    axes.grid(alpha=0.3)


def _smoothed(values: Sequence[float]) -> list[float]:
    """The average of each value and its neighbours."""
    half = len(values) // _SMOOTHED // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _draw_accuracy(axes: Any, evaluations: Sequence[Evaluation]) -> None:
    axes.set_ylabel("top-1 of averaged weights, %")
    style = "o-" if len(evaluations) <= 40 else "-"
    axes.plot(
        [evaluation.epoch for evaluation in evaluations],
        [100 * evaluation.top1 for evaluation in evaluations],
        style,
        color="black",
        markersize=4,
        linewidth=1.8,
    )
    axes.set_ylim(0, 100)


def _title(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return "not evaluated yet"
    best = max(evaluations, key=lambda evaluation: evaluation.top1)
    return f"best top-1 {best.top1:.2%} at {best.size} pixels, after {best.epoch:.4g} epochs"
