"""What the pictures share: colours, names, and which rows they take."""

from __future__ import annotations

from collections.abc import Iterable

from ..results import Row

#: Told apart by people who do not see all colours (Okabe and Ito).
COLOURS = {
    "eager_nchw": "#999999",
    "eager_nhwc": "#56B4E9",
    "compile_default": "#E69F00",
    "compile_reduce_overhead": "#F0E442",
    "compile_max_autotune": "#D55E00",
    "effv2": "#009E73",
    "effv2_graph": "#0072B2",
}
TITLES = {
    "eager_nchw": "eager",
    "eager_nhwc": "eager, channels_last",
    "compile_default": "torch.compile",
    "compile_reduce_overhead": "torch.compile, reduce-overhead",
    "compile_max_autotune": "torch.compile, max-autotune",
    "effv2": "effv2_kernels",
    "effv2_graph": "effv2_kernels, CUDA graph",
}


def ordered(names: Iterable[str]) -> list[str]:
    """Implementations in the order of the legend; unknown ones are left out."""
    found = set(names)
    return [name for name in COLOURS if name in found]


def devices(rows: Iterable[Row]) -> str:
    return ", ".join(dict.fromkeys(row.gpu for row in rows))
