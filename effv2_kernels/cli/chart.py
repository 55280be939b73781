"""The demo's bar chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..measuring.timing import Quantiles

_COLOURS = {"effv2": "#1b7837", "torch.compile": "#7b3294"}
_GREY = ("#b8b8b8", "#878787")


def save(
    path: Path,
    title: str,
    batches: Mapping[int, Mapping[str, Quantiles]],
    baseline: str,
    ratios: Mapping[int, Mapping[str, Quantiles]],
) -> None:
    """One panel a batch size: milliseconds (lower is better), 20th to 80th percentile as whiskers,
    and over each bar how many times as fast as the baseline it is."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 3.4 * len(batches), 4.2), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    for axes, (batch, times) in zip(panels, batches.items(), strict=True):
        names, shown = list(times), list(times.values())
        heights = [q.median for q in shown]
        whiskers = [
            [q.median - q.p20 for q in shown],
            [q.p80 - q.median for q in shown],
        ]
        axes.bar(names, heights, yerr=whiskers, capsize=4, width=0.65, color=_colours(names))
        tallest = max(heights)  # whiskers of a busy machine may leave the picture
        for i, (name, q) in enumerate(times.items()):
            ratio = f"\n{ratios[batch][name].median:.2f}x" if name != baseline else ""
            axes.annotate(
                f"{q.median:.{1 if q.median < 100 else 0}f} ms{ratio}",
                (i, min(q.p80, 1.2 * tallest)),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        axes.set_title(f"batch {batch}", fontsize=10)
        axes.set_ylim(0, 1.4 * tallest)
        axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
        axes.tick_params(axis="x", labelsize=9, length=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("milliseconds, lower is better")
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _colours(names: Sequence[str]) -> list[str]:
    return [_COLOURS.get(name, _GREY[i % 2]) for i, name in enumerate(names)]
