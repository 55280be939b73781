"""The microbenchmarks: one operator over the shapes that it has in V2-S, M and L."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import python_ref
from effv2_kernels.engines import triton as triton_ops
from effv2_kernels.launch import targets
from effv2_kernels.launch.targets import Target
from effv2_kernels.measuring.agreement import acceptable, relative_error
from effv2_kernels.patching.warmup import recorded
from effv2_kernels.running.inference import DISPATCHED

from .. import ceilings, implementations, measure, results
from ..catalogue import find
from ..implementations import WrongOutput
from ..measure import Timed
from ..ops import plain
from ..ops.cases import Case, first_and_last, of_blocks, of_text
from ..ops.rotation import Rotation, sets_needed
from ..options import Options
from ..results import Row
from ..roofline.floors import seconds
from ..sized_blocks import SizedBlock, blocks_of

NETWORKS = ("efficientnetv2_s", "efficientnetv2_m", "efficientnetv2_l")
#: Cases that are compiled together, in parallel processes, before the first of them is timed.
TOGETHER = 8
IMPLS = ("eager_nchw", "eager_nhwc", "compile_default", "compile_max_autotune", "effv2")
BASELINES = ("eager_nhwc", "compile_default")
EAGER = "eager_nhwc"
_IMAGES_CHECKED = 4


def run(suite: str, options: Options) -> Iterator[list[Row]]:
    """The rows of each case."""
    for dtype in options.dtype or (("bfloat16",) if options.on_gpu else ("float32",)):
        if dtype.startswith("autocast"):
            raise ValueError(f"--dtype {dtype}: an operator is measured in one dtype")
        every = cases(suite, options)
        batches = options.batch or ((1, 128) if options.full_size else (1,))
        for number, case in enumerate(every):
            if number % TOGETHER == 0 and options.on_gpu and options.budget.left() > 0:
                target = targets.of_device(options.device)
                compile_ahead(every[number : number + TOGETHER], batches, dtype, target)
            for batch in batches:
                what = f"{suite} {case.name}, batch {batch}, {dtype}"
                rows = partial(_case, suite, case, batch, dtype, options)
                yield measure.case(what, options, rows, _limit(options))


def _limit(options: Options) -> float | None:
    """Seconds for one case on a GPU, many times what it takes: torch.compile takes its time."""
    if not options.on_gpu:
        return None
    return 600.0 if any(name.startswith("compile") for name in _names(options)) else 60.0


def cases(suite: str, options: Options) -> list[Case]:
    if options.shape:
        return [of_text(suite, text) for text in options.shape]
    found = []
    names = options.models or (NETWORKS if options.full_size else ("efficientnetv2_b0",))
    for name in names:
        resolution = options.resolution or (find(name).resolution if options.full_size else 64)
        found += _blocks(name, resolution)
    return of_blocks(suite, found)


@cache
def in_networks(suite: str) -> dict[str, Case]:
    """By its name, every case that the networks have at their own resolution."""
    found = [block for name in NETWORKS for block in _blocks(name, find(name).resolution)]
    return {case.name: case for case in of_blocks(suite, found)}


@cache
def _blocks(name: str, resolution: int) -> list[SizedBlock]:
    with torch.device("meta"):
        return blocks_of(python_ref.create(name), resolution)


def compile_ahead(
    cases: Sequence[Case], batches: Sequence[int], dtype: str, target: Target
) -> None:
    """Of what these cases launch through Triton: in parallel, where each would compile for itself
    in the middle of its measurement. What does not compile is left for its case to tell."""
    if triton_ops.missing():
        return
    from effv2_kernels.engines.triton._compile import compile_all

    kind = getattr(torch, dtype)

    def run() -> None:
        for case in cases:
            for batch in batches:
                implementation("effv2", case)(*case.outline(batch, kind))

    compile_all(recorded(run, target), target, tolerant=True)


def implementation(name: str, case: Case) -> Callable[..., Any]:
    """A function of the operator's arguments."""
    expression = getattr(plain, case.op)
    if name in ("eager_nchw", "eager_nhwc"):
        return expression
    if name == "effv2":
        return getattr(DISPATCHED, case.op).default
    mode = "max-autotune-no-cudagraphs" if name == "compile_max_autotune" else None
    return torch.compile(expression, dynamic=False, mode=mode)


def check(case: Case, function: Callable[..., Any], arguments: tuple, name: str) -> None:
    """Raises WrongOutput if the first or the last images of what ``function`` computes err more
    than twice as much as plain PyTorch in the same dtype, against float64."""
    chosen = case.some_images(arguments, _IMAGES_CHECKED)
    images = chosen[0].shape[0]
    expression = getattr(plain, case.op)
    want = _outputs(expression(*(_wide(value) for value in chosen)))
    eager = _outputs(expression(*chosen))
    found = _outputs(function(*arguments))
    for ours, theirs, right in zip(found, eager, want, strict=True):
        error = relative_error(first_and_last(ours, images), right)
        allowed = relative_error(theirs, right)
        if not acceptable(error, allowed):
            text = f"{name}, {case.op} {case.name}: its error against float64 is {error:.2e}"
            raise WrongOutput(f"not timed: {text}, that of PyTorch {allowed:.2e}")


def _wide(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_wide, value))
    return value.double() if isinstance(value, Tensor) else value


def _outputs(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _case(suite: str, case: Case, batch: int, dtype: str, options: Options) -> list[Row]:
    device, kind = options.device, getattr(torch, dtype)
    ceiling = ceilings.measure(device, kind)  # before there is anything else in memory
    random = torch.Generator(device).manual_seed(0)
    work = case.kernel(batch, kind.itemsize)
    nhwc = [case.draw(batch, kind, device, random) for _ in range(sets_needed(work.bytes, device))]
    title = f"{suite} {case.name}, batch {batch}, {dtype}"

    def make(name: str) -> Rotation:
        function = implementation(name, case)
        sets = [_contiguous(s) for s in nhwc] if name == "eager_nchw" else nhwc
        check(case, function, sets[0], name)
        return Rotation(function, sets, f"{name}, {title}")

    with torch.inference_mode():
        calls = measure.build(_names(options), make, title, options.failures)
        rounds = options.rounds or (31 if options.full_size else 7)
        timed = measure.times(calls, device, rounds)
    counts = {name: call.count for name, call in calls.items()}
    each = Timed({n: [s / counts[n] for s in found] for n, found in timed.seconds.items()})
    floor = seconds(work, ceiling)
    row = results.maker(device, suite=suite, case=case.name, batch=batch, resolution=0, dtype=dtype)
    rows = []
    for name in each.seconds:
        rows.append(row(name, "latency_us", "us", each.of(name, 1e6)))
        rows.append(row(name, "part_of_floor", "", each.rate(name, floor)))
        rows.append(row(name, "bandwidth", "GB/s", each.rate(name, work.bytes / 1e9)))
        rows.append(row(name, "arithmetic", "TFLOP/s", each.rate(name, _flops(work) / 1e12)))
    for name, baseline, ratio in each.ratios(BASELINES):
        rows.append(row(name, f"speedup_vs_{baseline}", "x", ratio))
    return rows


def _flops(work: Any) -> float:
    return work.tensor + work.plain


def _names(options: Options) -> tuple[str, ...]:
    on_gpu = "eager_nchw", "eager_nhwc", "compile_default", "effv2"
    default = on_gpu if options.on_gpu else ("eager_nchw", "eager_nhwc", "effv2")
    return implementations.known(options.impl or default, IMPLS)


def _contiguous(arguments: tuple) -> tuple:
    return tuple(v.contiguous() if isinstance(v, Tensor) else v for v in arguments)
