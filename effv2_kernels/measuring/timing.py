"""Timing several callables fairly: interleaved rounds, medians, ratios within a round.

A machine gets slower and faster while one measures. So every round times each callable once, in an
order that rotates, and two callables are compared by the ratio of their times in the same round.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Quantiles:
    """What is reported of a list of samples."""

    median: float
    p20: float
    p80: float
    samples: int


def quantiles(values: Iterable[float]) -> Quantiles:
    """Median, 20th and 80th percentile; raises ValueError for no values.

    Of the samples themselves ("inclusive": interpolated between the least, at 0, and the largest,
    at 100), not of a population beyond them, so that no percentile is outside of what was measured
    as soon as there are two.
    """
    samples = list(values)
    if not samples:
        raise ValueError("no samples")
    middle = statistics.median(samples)
    if len(samples) == 1:  # of which the standard library gives none before Python 3.13
        return Quantiles(middle, middle, middle, 1)
    p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
    return Quantiles(middle, p20, p80, len(samples))


def paired_ratio(slower: Sequence[float], faster: Sequence[float]) -> Quantiles:
    """How many times as fast the second is: quantiles of the ratio in each round."""
    return quantiles(a / b for a, b in zip(slower, faster, strict=True))


def interleaved(
    calls: Calls,
    rounds: int,
    device: torch.device,
    repeat: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each call in each round. ``repeat`` is called after each round, and one for which
    it returns something true is thrown away and run again."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    shift = 0
    while len(seconds[names[0]]) < rounds:
        found = {name: timed(calls[name], device) for name in names[shift:] + names[:shift]}
        if repeat():
            continue
        for name in names:
            seconds[name].append(found[name])
        shift = (shift + 1) % len(names)
    return seconds


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, from idle device to idle device."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def warm_up(calls: Calls, device: torch.device, times: int = 3) -> float:
    """Run everything a few times; returns the seconds of the last round."""
    last = 0.0
    for _ in range(times):
        last = sum(timed(call, device) for call in calls.values())
    return last


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
