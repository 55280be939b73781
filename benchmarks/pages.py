"""The tables of the published pages: rows of the CSV files in, Markdown out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import geometric_mean

from .ops.cases import SUITES as OPERATORS
from .results import NO_DEVICE, Row
from .roofline.floors import H200
from .roofline.kernels import LEVELS, Level
from .roofline.training import TRAINING

NOT_MEASURED = "not measured"
#: torch.compile's modes, as a cell names them.
_COMPILED = {
    "compile_default": "",
    "compile_reduce_overhead": " (reduce-overhead)",
    "compile_max_autotune": " (max-autotune)",
}


def gains(rows: list[Row]) -> str:
    """A line for each measured case of a whole network, one more where it ran as a CUDA graph, and
    where it was measured. Beside it is the fastest mode of torch.compile that was."""
    found = [r for r in rows if r.suite in ("cpu", "models", "latency")]
    cases = list(dict.fromkeys(_case(r) for r in found))
    lines = []
    for case in cases:
        cells = {f"{r.impl} {r.metric}": r for r in found if _case(r) == case}
        device, network, resolution, dtype, batch, suite = case
        mode = _fastest(cells, _COMPILED)
        network = f"{network}, {resolution} px" + (", from idle" if suite == "latency" else "")
        for impl, run in (("effv2", ""), ("effv2_graph", ", captured")):
            if run and f"{impl} latency_ms" not in cells:
                continue
            lines.append(
                (
                    device,
                    f"{network}{run}",
                    dtype,
                    batch,
                    _value(cells.get("eager_nhwc latency_ms"), "{:.1f} ms"),
                    _value(cells.get(f"{mode} latency_ms"), f"{{:.1f}} ms{_COMPILED[mode]}"),
                    _value(cells.get(f"{impl} latency_ms"), "{:.1f} ms"),
                    _ratio(cells.get(f"{impl} speedup_vs_eager_nhwc")),
                    _ratio(cells.get(f"{impl} speedup_vs_{mode}")),
                )
            )
    if not any(_on_gpu(r) for r in found):
        lines.append(("GPU", "any", "any", "any", *[NOT_MEASURED] * 5))
    header = (
        "device", "network", "dtype", "batch", "eager channels_last", "`torch.compile`", "patched",
        "over eager", "over `torch.compile`",
    )  # fmt: skip
    return "\n\n".join([table(header, lines), *_sources(found)])


def _fastest(cells: Mapping[str, Row], names: Iterable[str]) -> str:
    """Of the implementations that were measured, else the first."""
    measured = [name for name in names if f"{name} latency_ms" in cells]
    return min(measured or names, key=lambda name: _time(cells, name))


def _time(cells: Mapping[str, Row], name: str) -> float:
    row = cells.get(f"{name} latency_ms")
    return math.inf if row is None else float(row.value)


def training(rows: list[Row]) -> str:
    """A line for each measured case of a training step, and what a step takes of memory."""
    found = [r for r in rows if r.suite in ("cpu_train", "memory") and r.gpu != NO_DEVICE]
    lines = []
    for case in dict.fromkeys((_case(r), r.gpu) for r in found if r.metric == "step_ms"):
        (_, network, resolution, dtype, batch, _), machine = case
        cells = {f"{r.impl} {r.metric}": r for r in found if (_case(r), r.gpu) == case}
        lines.append(
            (
                machine,
                f"{network}, {resolution} px",
                dtype,
                batch,
                _value(cells.get("eager_nhwc step_ms"), "{:.0f} ms"),
                _value(cells.get("effv2 step_ms"), "{:.0f} ms"),
                _ratio(cells.get("effv2 speedup_vs_eager_nhwc")),
            )
        )
    header = ("device", "network", "dtype", "batch", "eager channels_last", "patched", "gain")
    parts = [table(header, lines), *_of_memory(found), *_sources(found)]
    return "\n\n".join(parts)


def _of_memory(found: list[Row]) -> list[str]:
    lines = []
    titles = {
        "kept_for_backward": "kept for the backward, an image",
        "peak_resident": "the whole process at its peak",
    }
    kinds = (r for r in found if r.metric in titles)
    for metric, network, resolution, dtype, batch in dict.fromkeys(
        (r.metric, r.case, r.resolution, r.dtype, r.batch) for r in kinds
    ):
        key = metric, network, resolution, dtype, batch
        of = {
            r.impl.partition("_")[0]: r
            for r in found
            if (r.metric, r.case, r.resolution, r.dtype, r.batch) == key
        }
        eager, ours = of.get("eager"), of.get("effv2")
        if eager is None or ours is None:
            continue
        share = float(ours.value) / float(eager.value)
        title = titles[metric] + (f", batch {batch}" if metric == "peak_resident" else "")
        values = (_value(row, "{:.0f} MB") for row in (eager, ours))
        lines.append((title, f"{network}, {resolution} px", dtype, *values, f"**{share:.2f}**"))
    header = ("memory of a training step", "network", "dtype", "eager", "patched", "of eager's")
    return [table(header, lines)] if lines else []


def placement(rows: list[Row]) -> str:
    """Table 3 of the paper: what we count and measure beside what it prints."""
    found = [r for r in rows if r.suite == "placement"]
    measured = [r for r in found if _on_gpu(r)]
    runs = list(dict.fromkeys((r.gpu, r.batch, r.dtype) for r in measured))
    counted = []
    for case in dict.fromkeys(r.case for r in found):
        cells = {f"{r.impl} {r.metric}": r for r in found if r.case == case and not _on_gpu(r)}
        line = [case.removeprefix("B4, ")]
        for metric in ("parameters", "multiply_adds"):
            line += [
                _value(cells.get(f"python_ref {metric}"), "{:.1f}"),
                _value(cells.get(f"paper {metric}"), "{:.1f}"),
                _percent(cells.get(f"python_ref {metric}_over_paper")),
            ]
        line.append(_value(cells.get("paper inference_throughput"), "{:.0f}"))
        line.append(_value(cells.get("paper training_throughput"), "{:.0f}"))
        counted.append(line)
    header = (
        "Fused-MBConv in", "parameters, M", "paper", "difference", "multiply-adds, G", "paper",
        "difference", "paper: images/s on a V100", "paper: trained on a TPU core",
    )  # fmt: skip
    parts = [table(header, counted)]
    for gpu, batch, dtype in runs:
        lines = []
        for case in dict.fromkeys(r.case for r in measured):
            cells = {
                f"{r.impl} {r.metric}": r
                for r in measured
                if (r.case, r.gpu, r.batch, r.dtype) == (case, gpu, batch, dtype)
            }
            values = [
                _value(cells.get(f"{impl} {what}_throughput"), "{:.0f}")
                for what in ("inference", "training")
                for impl in ("eager_nhwc", "effv2")
            ]
            lines.append((case.removeprefix("B4, "), *values))
        header = ("Fused-MBConv in", "images/s, eager", "patched", "trained, eager", "patched")
        parts.append(f"{gpu}, batch {batch}, {dtype}:\n\n{table(header, lines)}")
    if not runs:
        parts.append(f"Throughput on a GPU: {NOT_MEASURED}.")
    return "\n\n".join(parts)


def headline(rows: list[Row]) -> str:
    """The paper's ratios, and what was measured."""
    found = [r for r in rows if r.suite == "headline"]
    lines = []
    for row in (r for r in found if r.impl == "paper" and r.metric == "training_speedup"):
        case = row.case.partition(" (")[0]
        inference = next(r for r in found if r.case == row.case and r.metric == "inference_speedup")
        line = [row.case, f"{float(row.value):.1f}x", f"{float(inference.value):.1f}x"]
        for metric in ("training_speedup", "inference_speedup"):
            ours = [
                r
                for r in found
                if r.case == case and r.metric == metric and _on_gpu(r) and "effv2" in r.impl
            ]
            line.append(_ratio(ours[-1] if ours else None))
        lines.append(line)
    header = ("comparison", "training, paper", "inference, paper", "training", "inference")
    return table(header, lines)


def roofline(rows: list[Row]) -> str:
    """What one image must move and compute in inference, by the way of running it."""
    return _floors(rows, LEVELS.values(), "")


def training_roofline(rows: list[Row]) -> str:
    """The same of a training step."""
    return _floors(rows, TRAINING.values(), "training, ")


def _floors(rows: list[Row], levels: Iterable[Level], prefix: str) -> str:
    found = [r for r in rows if r.suite == "roofline" and r.gpu == NO_DEVICE]
    found = [r for r in found if ": " not in r.case]  # the totals
    columns = {
        "kernels": ("kernels", "{:.0f}"),
        "MB moved": ("moved", "{:.1f}"),
        "GFLOP on tensor cores": ("tensor", "{:.1f}"),
        "million special": ("special", "{:.0f}"),
        "floor, us": (f"floor on {H200.source}", "{:.1f}"),
    }
    lines = []
    for case, resolution in dict.fromkeys((r.case, r.resolution) for r in found):
        for level in levels:
            cells = {r.metric: r for r in found if r.case == case and r.impl == level.name}
            values = [_value(cells.get(prefix + metric), form) for metric, form in columns.values()]
            lines.append((f"{case.partition(' ')[2]}, {resolution} px", level.title, *values))
    return table(("network", "run", *columns), lines)


def blocks(rows: list[Row]) -> str:
    """Block by block on each device: the time next to its floor."""
    found = [r for r in rows if r.suite == "roofline" and r.gpu != NO_DEVICE]
    found = [r for r in found if ": " in r.case]
    parts = []
    for gpu, case, batch, dtype in dict.fromkeys(
        (r.gpu, r.case.partition(":")[0], r.batch, r.dtype) for r in found
    ):
        mine = [
            r for r in found
            if (r.gpu, r.case.partition(":")[0], r.batch, r.dtype) == (gpu, case, batch, dtype)
        ]  # fmt: skip
        lines = []
        for block in dict.fromkeys(r.case for r in mine):
            cells = {f"{r.impl} {r.metric}": r for r in mine if r.case == block}
            line = [block.partition(": ")[2]]
            for impl in ("eager_nhwc", "compile_default", "effv2"):
                line.append(_value(cells.get(f"{impl} block_us"), "{:.0f}"))
            line.append(_value(cells.get("effv2 floor_us"), "{:.0f}"))
            line.append(_percent(cells.get("effv2 part_of_floor"), of=0.0))
            lines.append(line)
        header = ("block", "eager, us", "compiled, us", "patched, us", "floor, us", "reached")
        parts.append(f"{case} on {gpu}, batch {batch}, {dtype}:\n\n{table(header, lines)}")
    if not any(_on_gpu(r) for r in found):
        parts.append(f"On a GPU: {NOT_MEASURED}.")
    return "\n\n".join(parts)


def operators(rows: list[Row]) -> str:
    """For each operator and device: the geometric mean of its gains over the measured shapes, of
    whatever commits."""
    found = [r for r in rows if r.suite in OPERATORS and _on_gpu(r) and r.impl == "effv2"]
    lines = []
    for gpu, suite, batch, dtype in dict.fromkeys(
        (r.gpu, r.suite, r.batch, r.dtype) for r in found
    ):
        mine = [
            r for r in found if (r.gpu, r.suite, r.batch, r.dtype) == (gpu, suite, batch, dtype)
        ]
        means = [
            _mean(mine, metric)
            for metric in ("part_of_floor", "speedup_vs_eager_nhwc", "speedup_vs_compile_default")
        ]
        count = len({r.case for r in mine})
        lines.append((gpu, suite, batch, dtype, str(count), *means, _commits(mine)))
    if not lines:
        lines = [("GPU", suite, "any", "any", "0", *[NOT_MEASURED] * 4) for suite in OPERATORS]
    header = (
        "device", "operator", "batch", "dtype", "shapes", "part of its floor", "over eager",
        "over `torch.compile`", "commits",
    )  # fmt: skip
    return table(header, lines)


def shapes(rows: list[Row]) -> str:
    """Every operator's shapes at batch 128: what it replaces, ours, how far from the floor. Ours is
    from the operator's own suite, or from ``tune`` where that measured a later version, apart."""
    found = [r for r in rows if r.suite in OPERATORS and _on_gpu(r) and r.batch == "128"]
    later = {(r.gpu, r.case, r.dtype): r for r in rows if r.suite == "tune" and r.impl == "effv2"
             and r.batch == "128"}  # fmt: skip
    lines = []
    for gpu, suite, case, dtype in dict.fromkeys((r.gpu, r.suite, r.case, r.dtype) for r in found):
        mine = [r for r in found if (r.gpu, r.suite, r.case, r.dtype) == (gpu, suite, case, dtype)]
        cells = {f"{r.impl} {r.metric}": r for r in mine}
        eager, ours = cells.get("eager_nhwc latency_us"), cells.get("effv2 latency_us")
        part = cells.get("effv2 part_of_floor")
        if eager is None or ours is None or part is None:
            continue
        floor = float(part.value) * float(ours.value)
        apart = later.get((gpu, f"{suite} {case}", dtype))
        now = apart if apart is not None and apart.commit != ours.commit else ours
        gain = float(eager.value) / float(now.value)
        lines.append((
            gpu, suite, case, dtype, _value(eager, "{:.1f}"), _value(now, "{:.1f}"),
            f"{gain:.2f}x", f"{100 * floor / float(now.value):.0f} %",
            "apart" if now is apart else "in turn", now.commit,
        ))  # fmt: skip
    if not lines:
        return f"On a GPU: {NOT_MEASURED}."
    header = (
        "device", "operator", "shape", "dtype", "eager, us", "ours, us", "over eager",
        "part of its floor", "timed", "commit",
    )  # fmt: skip
    return table(header, lines)


def correctness(rows: list[Row]) -> str:
    """For each operator and engine: outputs that a GPU computed, those that were wrong, the worst
    error over PyTorch's own (2 is what may pass)."""
    found = [r for r in rows if r.suite == "correctness"]
    lines = []
    for gpu, op, impl in dict.fromkeys((r.gpu, r.case, r.impl) for r in found):
        mine = [r for r in found if (r.gpu, r.case, r.impl) == (gpu, op, impl)]
        values = {m: [float(r.value) for r in mine if r.metric == m] for m in
                  ("outputs", "wrong_outputs", "worst_error_over_pytorch")}  # fmt: skip
        dtypes = ", ".join(dict.fromkeys(r.dtype for r in mine))
        lines.append((
            gpu, op, impl, dtypes, f"{sum(values['outputs']):.0f}",
            f"{sum(values['wrong_outputs']):.0f}",
            f"{max(values['worst_error_over_pytorch']):.2f}",
            _commits(mine),
        ))  # fmt: skip
    if not lines:
        return f"On a GPU: {NOT_MEASURED}."
    header = (
        "device", "operator", "engine", "dtypes", "outputs", "wrong", "worst error over PyTorch's",
        "commits",
    )  # fmt: skip
    return table(header, lines)


def counters(rows: list[Row]) -> str:
    """A line for each kernel of an operator's shape that ncu looked at."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        if row.suite == "counters":
            key = row.gpu, row.case, row.dtype, row.batch, row.impl
            found.setdefault(key, {})[row.metric] = row
    lines = []
    for (device, case, dtype, batch, kernel), cells in found.items():
        stalls = [row for metric, row in cells.items() if metric.startswith("stall_")]
        chief = max(stalls, key=lambda row: float(row.value), default=None)
        lines.append(
            (
                device, case, dtype, batch, kernel,
                _value(cells.get("latency_us"), "{:.1f}"),
                *(_value(cells.get(metric), "{:.0f} %") for metric in _COUNTED),
                _value(cells.get("registers"), "{:.0f}"),
                "none" if chief is None else chief.metric.removeprefix("stall_").replace("_", " "),
                _commits(cells.values()),
            )
        )  # fmt: skip
    header = (
        "device", "operator and shape", "dtype", "batch", "kernel", "us",
        "DRAM", "L2", "L1", "issue", "tensor cores", "special functions", "warps", "registers",
        "most warps wait for", "commit",
    )  # fmt: skip
    return table(header, lines) if lines else f"On a GPU: {NOT_MEASURED}."


_COUNTED = ("dram", "l2", "l1", "issue", "tensor", "special", "warps")


def kernels(rows: list[Row]) -> str:
    """What the compilers say, the worst instance of each kernel and architecture."""
    found = [r for r in rows if r.suite in ("cuda", "triton") and r.gpu.startswith("sm_")]
    lines = []
    for suite, name, gpu in dict.fromkeys((r.suite, _kernel(r), r.gpu) for r in found):
        mine = [r for r in found if (r.suite, _kernel(r), r.gpu) == (suite, name, gpu)]

        def most(metric: str, pick: Callable = max, mine: list[Row] = mine) -> str:
            values = [float(r.value) for r in mine if r.metric == metric]
            return f"{pick(values):g}" if values else "-"

        tensor = "mma_instructions" if suite == "cuda" else "tensor_core_instructions"
        lines.append(
            (
                name,
                "CUDA" if suite == "cuda" else "Triton",
                gpu,
                str(len({r.case for r in mine})),
                most("registers"),
                most("spill_bytes"),
                most("shared_bytes"),
                most(tensor, min),
            )
        )
    header = (
        "kernel", "language", "architecture", "instances", "most registers", "most spilled bytes",
        "most shared bytes", "fewest tensor-core instructions",
    )  # fmt: skip
    return table(header, lines) if lines else "Not compiled yet."


def _kernel(row: Row) -> str:
    return row.case.partition(" ")[0].partition("<")[0]


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    rule = "|".join("---" for _ in header)
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}|",
                      *(f"| {' | '.join(line)} |" for line in lines)])  # fmt: skip


def _case(row: Row) -> tuple[str, ...]:
    device = row.gpu.partition(" (")[0]
    return device, row.case, row.resolution, row.dtype, row.batch, row.suite


def _commits(rows: Iterable[Row]) -> str:
    return ", ".join(dict.fromkeys(row.commit for row in rows))


def _sources(rows: list[Row]) -> list[str]:
    machines = dict.fromkeys(f"{r.gpu}, torch {r.torch}, {r.date}, commit {r.commit}" for r in rows)
    return ["\n".join(f"Measured on: {machine}." for machine in machines)] if machines else []


def _on_gpu(row: Row) -> bool:
    return row.gpu != NO_DEVICE and not row.gpu.startswith("CPU ")


def _value(row: Row | None, form: str) -> str:
    return form.format(float(row.value)) if row else NOT_MEASURED


def _ratio(row: Row | None) -> str:
    if row is None:
        return NOT_MEASURED
    low, high = float(row.p20), float(row.p80)
    return f"**{float(row.value):.2f}x** ({low:.2f} to {high:.2f})"


def _percent(row: Row | None, of: float = 1.0) -> str:
    """A ratio as a difference from ``of``, in percent."""
    if row is None:
        return NOT_MEASURED
    sign = "+" if of else ""
    return f"{100 * (float(row.value) - of):{sign}.1f} %"


def _mean(rows: list[Row], metric: str) -> str:
    values = [float(r.value) for r in rows if r.metric == metric]
    if not values or min(values) <= 0:
        return NOT_MEASURED
    return f"{geometric_mean(values):.2f}"
