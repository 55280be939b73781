"""Whole networks in inference: ``models`` measures throughput, ``latency`` a batch of one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from effv2_kernels.measuring import networks
from effv2_kernels.measuring.agreement import acceptable, relative_error
from effv2_kernels.measuring.timing import quantiles

from .. import implementations, measure, results
from ..catalogue import OURS, PEERS, Entry, find
from ..implementations import EAGER, INFERENCE, WrongOutput
from ..ops.cases import first_and_last
from ..options import Options
from ..results import Row

BASELINES = (
    *("eager_nchw", "eager_nhwc"),
    *("compile_default", "compile_reduce_overhead", "compile_max_autotune"),
)
_IMAGES_CHECKED = 2
_ON_GPU = tuple(n for n in INFERENCE if n not in ("compile_max_autotune", "compile_freezing"))
_ON_CPU = ("eager_nchw", "eager_nhwc", "effv2")


def models(options: Options) -> Iterator[list[Row]]:
    """Throughput, over batches."""
    batches = options.batch or ((128, 32, 8, 1, 256) if options.full_size else (2,))
    yield from _cases("models", options, batches, (*OURS, *PEERS))


def latency(options: Options) -> Iterator[list[Row]]:
    """One image, from an idle device to an idle device."""
    yield from _cases("latency", options, options.batch or (1,), OURS)


def prepared(entry: Entry, resolution: int, device: torch.device) -> nn.Module:
    """The network in evaluation mode and float32 on ``device``, with batch norm statistics of
    images that pass through it: default ones let activations die out or explode."""
    network = networks.build(entry.name, entry.library)
    model = network.model.to(device)
    random = torch.Generator(device).manual_seed(0)
    shape = 4, 3, resolution, resolution
    networks.calibrate(
        model, (torch.randn(shape, generator=random, device=device) for _ in range(2))
    )
    return model


@dataclass(frozen=True)
class Checked:
    """Implementations whose outputs are right; on a GPU the memory that one call of each takes."""

    calls: dict[str, Callable[[], Tensor]]
    peak_megabytes: dict[str, float]


def calls(
    model: nn.Module,
    images: Tensor,
    title: str,
    dtype: str,
    names: tuple[str, ...],
    options: Options,
) -> Checked:
    """The named implementations of a float32 network on float32 images, computing in ``dtype``."""
    kind, context = implementations.precision(dtype, options.device)
    with torch.inference_mode():
        few = first_and_last(images, _IMAGES_CHECKED)
        reference = copy.deepcopy(model).double()(few.double())
    model, images = model.to(kind), images.to(kind)
    with torch.inference_mode(), context:
        allowed = relative_error(model(few.to(kind)), reference)
    peaks: dict[str, float] = {}

    def make(name: str) -> Callable[[], Tensor]:
        call = implementations.inference(name, model, images)

        def run() -> Tensor:
            with torch.inference_mode(), context:
                return call()

        checked(run, reference, allowed, f"{name}, {title}")
        if options.on_gpu:
            peaks[name] = _peak_megabytes(run, options.device)
        return run

    return Checked(measure.build(names, make, title, options.failures), peaks)


def checked(call: Callable[[], Tensor], reference: Tensor, allowed: float, what: str) -> None:
    """Raises WrongOutput if the first and last images of the output are not as they should be."""
    error = relative_error(first_and_last(call(), len(reference)), reference)
    if not acceptable(error, allowed):
        text = f"not timed: {what}: its error against float64 is {error:.2e}"
        raise WrongOutput(f"{text}, that of PyTorch {allowed:.2e}")


def _cases(
    suite: str, options: Options, batches: tuple[int, ...], known: tuple[str, ...]
) -> Iterator[list[Row]]:
    implementations.known(options.impl, INFERENCE)
    names = options.models or (known if options.full_size else ("efficientnetv2_b0",))
    dtypes = options.dtype or (("bfloat16",) if options.on_gpu else ("float32",))
    # The batches of all networks before the next batch: what a short budget reaches is then even.
    for dtype in dtypes:
        for batch in batches:
            for entry in (find(name, options.library) for name in names):
                rows = partial(_rows, suite, entry, batch, dtype, options)
                yield measure.case(f"{suite} {entry.title}, {batch}, {dtype}", options, rows)


def _rows(suite: str, entry: Entry, batch: int, dtype: str, options: Options) -> list[Row]:
    device = options.device
    # Most of the paper's peers take images of one size only.
    resolution = entry.resolution if entry.peer else options.resolution or entry.resolution
    model = prepared(entry, resolution, device)
    random = torch.Generator(device).manual_seed(1)
    images = torch.randn(batch, 3, resolution, resolution, generator=random, device=device)
    title = f"{entry.title} at {resolution}, batch {batch}, {dtype}"
    names = (EAGER, *(options.impl or (_ON_GPU if options.on_gpu else _ON_CPU)))
    found = calls(model, images, title, dtype, tuple(dict.fromkeys(names)), options)
    rounds = options.rounds or (21 if options.full_size else 5)
    timing = measure.latencies if suite == "latency" else measure.times
    timed = timing(found.calls, device, rounds)
    row = results.maker(
        device,
        suite=suite,
        case=f"{entry.library} {entry.name}",
        batch=batch,
        resolution=resolution,
        dtype=dtype,
    )
    rows = []
    for name in timed.seconds:
        rows.append(row(name, "latency_ms", "ms", timed.of(name, 1e3)))
        rows.append(row(name, "throughput", "images/s", timed.rate(name, batch)))
        if name in found.peak_megabytes:
            peak = quantiles([found.peak_megabytes[name]])
            rows.append(row(name, "peak_memory", "MB", peak))
    for name, baseline, ratio in timed.ratios(BASELINES):
        rows.append(row(name, f"speedup_vs_{baseline}", "x", ratio))
    return rows


def _peak_megabytes(call: Callable[[], Tensor], device: torch.device) -> float:
    """The most memory that one call takes on top of what is there before it."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
