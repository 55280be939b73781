"""How well the outputs of two runs of one network agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

# Two right results differ by rounding; below this a ratio of errors tells nothing.
TINY = 1e-6


@dataclass(frozen=True)
class Agreement:
    """error: ||out - ref|| / ||ref||. same_order, same_set: images (of ``images``) whose top
    classes equal those of the unpatched network, in the same order or in any."""

    error: float
    same_order: int
    same_set: int
    images: int


def relative_error(output: Tensor, reference: Tensor) -> float:
    """||output - reference|| / ||reference|| in float64; NaN and infinity give infinity."""
    if output.shape != reference.shape:
        return math.inf
    difference = (output.double() - reference.double()).norm()
    error = float(difference / reference.double().norm())
    return error if math.isfinite(error) else math.inf


def acceptable(error: float, eager_error: float) -> bool:
    """Whether an error may pass, next to that of PyTorch in the same dtype."""
    return error <= 2 * eager_error + TINY


def compare(output: Tensor, eager: Tensor, reference: Tensor, top: int = 5) -> Agreement:
    """Logits (N, classes) of a run, of the unpatched network, and of that network in float64."""
    top = min(top, output.shape[1])
    ours, theirs = output.topk(top).indices, eager.topk(top).indices
    return Agreement(
        relative_error(output, reference),
        int((ours == theirs).all(1).sum()),
        int((ours.sort(1).values == theirs.sort(1).values).all(1).sum()),
        len(output),
    )
