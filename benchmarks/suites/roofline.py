"""Where the time of a network goes, block by block: what it must move and compute when run eagerly,
compiled, fused and on chip; the floors; and, on the device at hand, what it takes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from effv2_kernels.measuring import networks as built
from effv2_kernels.measuring.agreement import relative_error
from effv2_kernels.measuring.timing import quantiles

from .. import ceilings, implementations, measure, results
from ..catalogue import find
from ..ops.cases import first_and_last
from ..ops.rotation import Rotation
from ..options import Options
from ..results import Row
from ..roofline.floors import H200, Ceilings, seconds, total
from ..roofline.kernels import LEVELS, Level
from ..roofline.training import TRAINING
from ..sized_blocks import SizedBlock, blocks_of
from . import networks

NETWORKS = ("efficientnetv2_s", "efficientnetv2_m", "efficientnetv2_l")
#: The way of counting that an implementation is compared with.
FLOOR_OF = {"eager_nhwc": "eager", "compile_default": "compiled", "effv2": "on_chip"}


def roofline(options: Options) -> Iterator[list[Row]]:
    """Totals and floors of every network first, since they cost nothing; then times."""
    if any(dtype.startswith("autocast") for dtype in options.dtype):
        raise ValueError("--dtype: a block is measured in one dtype, not under autocast")
    names = options.models or NETWORKS
    library = options.library or "python_ref"
    for name in names:
        entry = find(name, library)
        model = built.build(entry.name, library).model
        resolution = options.resolution or entry.resolution
        yield list(static_rows(f"{library} {entry.name}", blocks_of(model, resolution), resolution))
    for dtype in options.dtype or (("bfloat16",) if options.on_gpu else ("float32",)):
        if options.budget.allows(f"ceilings of {options.device}, {dtype}"):
            yield ceilings.rows(options.device, getattr(torch, dtype))
        for name in names if options.models or options.full_size else ("efficientnetv2_b0",):
            entry = find(name, library)
            resolution = options.resolution or (entry.resolution if options.full_size else 64)
            for batch in options.batch or ((128,) if options.full_size else (1,)):
                if options.budget.allows(f"blocks of {entry.title}, batch {batch}, {dtype}"):
                    model = built.build(entry.name, library).model
                    case = f"{library} {entry.name}"
                    yield from _measured(case, model, resolution, batch, dtype, options)


def static_rows(
    case: str, blocks: list[SizedBlock], resolution: int, where: Ceilings = H200
) -> Iterator[Row]:
    """For one image in bf16: the totals, then each group of equal blocks."""
    parts = {case: blocks}
    parts.update({_group_title(case, group): group for group in groups_of(blocks)})
    for title, some in parts.items():
        yield from _counted(title, some, resolution, LEVELS, "", where)
    yield from _counted(case, blocks, resolution, TRAINING, "training, ", where)


def _counted(
    title: str,
    blocks: list[SizedBlock],
    resolution: int,
    levels: dict[str, Level],
    prefix: str,
    where: Ceilings,
) -> Iterator[Row]:
    make = results.static_maker(
        suite="roofline", case=title, batch=1, resolution=resolution, dtype="bfloat16"
    )
    for level in levels.values():
        kernels = [k for block in blocks for k in level.kernels(block, 2)]
        for metric, unit, value in (
            ("moved", "MB", sum(k.bytes for k in kernels) / 1e6),
            ("tensor", "GFLOP", sum(k.tensor for k in kernels) / 1e9),
            ("plain", "GFLOP", sum(k.plain for k in kernels) / 1e9),
            ("special", "Mop", sum(k.sfu for k in kernels) / 1e6),
            ("kernels", "", len(kernels)),
            (f"floor on {where.source}", "us", 1e6 * total(kernels, where)),
        ):
            yield make(level.name, prefix + metric, unit, value)


def groups_of(blocks: list[SizedBlock]) -> list[list[SizedBlock]]:
    """Blocks that do the same work together, in order of the first of each."""
    found: dict[tuple, list[SizedBlock]] = {}
    for block in blocks:
        found.setdefault(block.shape, []).append(block)
    return list(found.values())


def _group_title(case: str, group: list[SizedBlock]) -> str:
    first = group[0]
    c, h, w = first.inputs
    shape = f"{c}x{h}x{w} to {first.outputs[0]}"
    return f"{case}: {first.name} ({len(group)} x {first.kind} {shape})"


def _measured(
    case: str, model: nn.Module, resolution: int, batch: int, dtype: str, options: Options
) -> Iterator[list[Row]]:
    """Times of each distinct block alone, times the number of such blocks, next to its floor."""
    kind = getattr(torch, dtype)
    random = torch.Generator(options.device).manual_seed(0)
    model = model.to(options.device)
    shape = 4, 3, resolution, resolution
    built.calibrate(model, [torch.randn(shape, generator=random, device=options.device)])
    model = model.to(kind).to(memory_format=torch.channels_last)
    patched = copy.deepcopy(model)
    implementations.patched(patched)
    # What compiles comes last: a budget that ends there has measured everything else.
    default = tuple(FLOOR_OF) if options.on_gpu else ("eager_nhwc", "effv2")
    names = implementations.known(options.impl or default, tuple(FLOOR_OF))
    quick = tuple(name for name in names if not name.startswith("compile"))
    for some in (quick, tuple(name for name in names if name not in quick)):
        for found in groups_of(blocks_of(model, resolution)) if some else ():
            if isinstance(model.get_submodule(found[0].name), nn.Conv2d):
                continue  # an end of timm's: no module of its own computes it
            others = {"effv2": patched}
            rows = partial(
                _block_rows, case, model, others, found, resolution, batch, dtype, some, options
            )
            what = f"{case}, block {found[0].name}, {', '.join(some)}"
            yield measure.case(what, options, rows)


def _block_rows(
    case: str,
    model: nn.Module,
    others: dict[str, nn.Module],
    found: list[SizedBlock],
    resolution: int,
    batch: int,
    dtype: str,
    names: tuple[str, ...],
    options: Options,
) -> list[Row]:
    """others: the network as an implementation needs it, where that is not ``model``."""
    device, kind = options.device, getattr(torch, dtype)
    ceiling = ceilings.measure(device, kind)
    first = found[0]
    random = torch.Generator(device).manual_seed(0)
    x = torch.randn(batch, *first.inputs, generator=random, device=device).to(kind)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        module = model.get_submodule(first.name)
        few = first_and_last(x, 2)
        wide = copy.deepcopy(module).double()(few.double())
        allowed = relative_error(module(few), wide)

    def make(name: str) -> Rotation:
        run = others.get(name, model).get_submodule(first.name)
        if name == "compile_default":
            run = torch.compile(run, dynamic=False)
        networks.checked(lambda: run(x), wide, allowed, f"{name}, block {first.name}")
        return Rotation(run, [(x,)], f"{name}, block {first.name}")

    with torch.inference_mode():
        calls = measure.build(names, make, first.name, options.failures)
        timed = measure.times(calls, device, options.rounds or (15 if options.full_size else 5))
    make_row = results.maker(
        device,
        suite="roofline",
        case=_group_title(case, found),
        batch=batch,
        resolution=resolution,
        dtype=dtype,
    )
    rows = []
    for name in timed.seconds:
        # A head on its own writes the map that the network only takes the mean of.
        block = replace(first, role="block") if first.role == "head" else first
        kernels = LEVELS[FLOOR_OF[name]].kernels(block, kind.itemsize)
        floor = batch * sum(seconds(kernel, ceiling) for kernel in kernels)
        rows.append(make_row(name, "block_us", "us", timed.of(name, 1e6 * len(found))))
        rows.append(make_row(name, "floor_us", "us", quantiles([1e6 * floor * len(found)])))
        rows.append(make_row(name, "part_of_floor", "", timed.rate(name, floor)))
    return rows
