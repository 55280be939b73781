"""The paper's headline: V2-M against V1-B7 and V2-L against ViT-L/16, in training and inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from effv2_kernels.measuring.timing import quantiles

from .. import measure, results
from ..catalogue import Entry, find
from ..measure import Timed
from ..options import Options
from ..results import Row
from . import networks, training


@dataclass(frozen=True)
class Claim:
    """One of ours, what it is compared with, and how many times faster the paper says it is in
    training and in inference. ``source`` says where."""

    ours: str
    other: str
    training: float
    inference: float
    source: str


CLAIMS = (
    Claim("efficientnetv2_m", "efficientnet_b7", 139 / 13, 170 / 57, "table 7"),
    Claim("efficientnetv2_m", "efficientnet_b7", 54 / 13, 170 / 57, "table 10, same recipe"),
    Claim("efficientnetv2_l", "vit_l16", 172 / 26, 195 / 98, "table 7, ImageNet-21k"),
)
_SMALL = (("efficientnetv2_b0", "efficientnet_b0"),)
_INFERENCE = {True: ("eager_nhwc", "compile_default", "effv2"), False: ("eager_nhwc", "effv2")}


def headline(options: Options) -> Iterator[list[Row]]:
    """The paper's ratios, then ours: each against the fastest way to run the other."""
    yield [row for claim in CLAIMS for row in _quoted(claim)]
    dtype = (options.dtype or (("bfloat16",) if options.on_gpu else ("float32",)))[0]
    pairs = dict.fromkeys((c.ours, c.other) for c in CLAIMS) if options.full_size else _SMALL
    for names in pairs:
        ours, other = (find(name) for name in names)
        title = f"{ours.title} against {other.title}"
        for what, race in (("inference", _inference), ("training", _training)):
            rows = partial(_compare, what, race, ours, other, dtype, options)
            yield measure.case(f"{what} of {title}", options, rows)


@dataclass(frozen=True)
class _Race:
    ours: Entry
    other: Entry
    batch: int
    timed: Timed  # by "network: implementation"


def _quoted(claim: Claim) -> Iterator[Row]:
    ours, other = find(claim.ours), find(claim.other)
    case = f"{ours.title} against {other.title} ({claim.source})"
    make = results.static_maker(suite="headline", case=case, batch="", resolution="")
    yield make("paper", "training_speedup", "x", claim.training)
    yield make("paper", "inference_speedup", "x", claim.inference)


def _inference(ours: Entry, other: Entry, dtype: str, options: Options) -> _Race:
    batch = (options.batch or ((64,) if options.full_size else (1,)))[0]
    calls = {}
    for entry in (other, ours):
        resolution = entry.resolution if options.full_size else 64
        model = networks.prepared(entry, resolution, options.device)
        images = torch.randn(batch, 3, resolution, resolution, device=options.device)
        names = options.impl or _INFERENCE[options.on_gpu]
        found = networks.calls(model, images, entry.title, dtype, names, options).calls
        calls.update({f"{entry.title}: {name}": call for name, call in found.items()})
    return _Race(ours, other, batch, measure.times(calls, options.device, options.rounds or 11))


def _training(ours: Entry, other: Entry, dtype: str, options: Options) -> _Race:
    batch = (options.batch or ((16,) if options.full_size else (2,)))[0]
    steps = {}
    for entry in (other, ours):
        resolution = entry.train_resolution if options.full_size else 64
        model = training.trainable(entry)

        def make(name: str, model=model, resolution=resolution) -> training.Step:
            training.check(name, model, resolution, dtype, options.device)
            return training.make_step(name, model, resolution, batch, dtype, options.device)

        names = options.impl or _INFERENCE[options.on_gpu]
        title = f"training {entry.title}"
        found = measure.build(names, make, title, options.failures)
        steps.update({f"{entry.title}: {name}": step for name, step in found.items()})
    timed = measure.latencies(steps, options.device, options.rounds or 7)
    return _Race(ours, other, batch, timed)


def _compare(
    what: str,
    run: Callable[[Entry, Entry, str, Options], _Race],
    ours: Entry,
    other: Entry,
    dtype: str,
    options: Options,
) -> list[Row]:
    dtype = training.trained_in(dtype, options) if what == "training" else dtype
    race = run(ours, other, dtype, options)
    make = results.maker(
        options.device,
        suite="headline",
        case=f"{race.ours.title} against {race.other.title}",
        batch=race.batch,
        resolution="",
        dtype=dtype,
    )
    timed = race.timed
    theirs = [name for name in timed.seconds if name.startswith(f"{race.other.title}: ")]
    rows = [
        make(name, f"{what}_throughput", "images/s", timed.rate(name, race.batch))
        for name in timed.seconds
    ]
    if not theirs:
        return rows
    best = min(theirs, key=lambda name: timed.of(name).median)
    for name in timed.seconds:
        if name not in theirs:
            pairs = zip(timed.seconds[best], timed.seconds[name], strict=True)
            ratio = quantiles(a / b for a, b in pairs)
            rows.append(make(name, f"{what}_speedup", "x", ratio))
    return rows
