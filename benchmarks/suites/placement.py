"""The paper's table 3: Fused-MBConv in more and more stages of the B4 backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import python_ref
from effv2_kernels.measuring import networks as built
from python_ref import Placement

from .. import measure, results
from ..options import Options
from ..results import Row
from . import networks, training

RESOLUTION = 380
_ALL = (1, 2, 3, 4, 5, 6, 7)


@dataclass(frozen=True)
class Paper:
    """Table 3: millions of parameters, billions of multiply-adds, accuracy in percent, images a
    second on a TPU core and on a V100."""

    title: str
    fused: tuple[int, ...]
    parameters: float
    flops: float
    top1: float
    tpu: float
    v100: float


TABLE_3 = (
    Paper("no fused", (), 19.3, 4.5, 82.8, 262, 155),
    Paper("fused stages 1-3", _ALL[:3], 20.0, 7.5, 83.1, 362, 216),
    Paper("fused stages 1-5", _ALL[:5], 43.4, 21.3, 83.1, 327, 223),
    Paper("fused stages 1-7", _ALL, 132.0, 34.4, 81.7, 254, 206),
)
#: The paper does not say which kernel its fused stages have; neither reading gives all rows.
READINGS = {"3x3 kernels": 3, "B4's kernels": None}


def placement(options: Options) -> Iterator[list[Row]]:
    """Parameters and multiply-adds beside the paper's, then throughput; on a CPU only of the first
    two, whose stages are the smallest."""
    yield [row for paper, reading in _cases() for row in static_rows(paper, reading)]
    resolution = options.resolution or (RESOLUTION if options.full_size else 64)
    batch = (options.batch or ((128,) if options.full_size else (2,)))[0]
    timed = list(_cases())[: None if options.full_size else 2]
    for dtype in options.dtype or (("bfloat16",) if options.on_gpu else ("float32",)):
        for paper, reading in timed:
            for what, rows in (("inference", _inference), ("training", _training)):
                some = partial(rows, paper, reading, resolution, batch, dtype, options)
                yield measure.case(f"{what} of {_title(paper, reading)}, {dtype}", options, some)


def static_rows(paper: Paper, reading: str) -> Iterator[Row]:
    """What needs no device: counted here, printed in the paper, and the difference."""
    model = create(paper, reading)
    counted = {
        "parameters": (sum(p.numel() for p in model.parameters()) / 1e6, paper.parameters, "M"),
        "multiply_adds": (python_ref.count_macs(model, RESOLUTION) / 1e9, paper.flops, "G"),
    }
    make = results.static_maker(
        suite="placement", case=_title(paper, reading), batch=1, resolution=RESOLUTION
    )
    for metric, (found, printed, unit) in counted.items():
        yield make("python_ref", metric, unit, found)
        yield make("paper", metric, unit, printed)
        yield make("python_ref", f"{metric}_over_paper", "", found / printed)
    yield make("paper", "inference_throughput", "images/s on a V100", paper.v100)
    yield make("paper", "training_throughput", "images/s on a TPU core", paper.tpu)
    yield make("paper", "top1", "%", paper.top1)


def create(paper: Paper, reading: str) -> python_ref.EfficientNet:
    chosen = Placement(paper.fused, kernel=READINGS[reading])
    return python_ref.create("efficientnet_b4", placement=chosen, drop_path=0.0, dropout=0.0)


def _cases() -> Iterator[tuple[Paper, str]]:
    for paper in TABLE_3:
        for reading in READINGS:
            if paper.fused or reading == next(iter(READINGS)):
                yield paper, reading


def _title(paper: Paper, reading: str) -> str:
    return f"B4, {paper.title}" + (f", {reading}" if paper.fused else "")


def _inference(
    paper: Paper, reading: str, resolution: int, batch: int, dtype: str, options: Options
) -> list[Row]:
    title = _title(paper, reading)
    calls = _calls(lambda: create(paper, reading), title, resolution, batch, dtype, options)
    timed = measure.times(calls, options.device, options.rounds or (11 if options.full_size else 3))
    make = results.maker(
        options.device,
        suite="placement",
        case=title,
        batch=batch,
        resolution=resolution,
        dtype=dtype,
    )
    rows = [
        make(n, "inference_throughput", "images/s", timed.rate(n, batch)) for n in timed.seconds
    ]
    for name, baseline, ratio in timed.ratios(("eager_nhwc",)):
        rows.append(make(name, f"inference_speedup_vs_{baseline}", "x", ratio))
    return rows


def _training(
    paper: Paper, reading: str, resolution: int, batch: int, dtype: str, options: Options
) -> list[Row]:
    device = options.device
    batch = min(batch, 32)
    dtype = training.trained_in(dtype, options)
    model = create(paper, reading)

    def make(name: str) -> training.Step:
        training.check(name, model, resolution, dtype, device)
        return training.make_step(name, model, resolution, batch, dtype, device)

    title = f"training {_title(paper, reading)}"
    steps = measure.build(_names(options), make, title, options.failures)
    timed = measure.latencies(steps, device, options.rounds or (7 if options.full_size else 3))
    row = results.maker(
        device,
        suite="placement",
        case=_title(paper, reading),
        batch=batch,
        resolution=resolution,
        dtype=dtype,
    )
    return [row(n, "training_throughput", "images/s", timed.rate(n, batch)) for n in timed.seconds]


def _names(options: Options) -> tuple[str, ...]:
    return options.impl or ("eager_nhwc", "effv2")


def _calls(
    create_model: Callable[[], torch.nn.Module],
    title: str,
    resolution: int,
    batch: int,
    dtype: str,
    options: Options,
) -> dict[str, Callable[[], Tensor]]:
    """Checked implementations of a network on a batch of noise."""
    model = create_model().eval().to(options.device)
    random = torch.Generator(options.device).manual_seed(0)
    shape = batch, 3, resolution, resolution
    images = torch.randn(shape, generator=random, device=options.device)
    built.calibrate(model, [images[:4]])
    return networks.calls(model, images, title, dtype, _names(options), options).calls
