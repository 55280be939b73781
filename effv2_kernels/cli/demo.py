"""``demo``: a photograph through a network, patched and not.

Says how well the outputs agree (against float64 of the same network), what ``patch`` did, and how
long each takes. Its exit status is 1 where the patched network is wrong, 2 where it could not run.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import effv2_kernels

from ..measuring.agreement import Agreement, acceptable, compare
from ..measuring.load import Share
from ..measuring.timing import Quantiles, interleaved, paired_ratio, quantiles, warm_up

if TYPE_CHECKING:
    from ..measuring.networks import Network

BASELINE = "eager channels_last"
_SECONDS = 10.0  # of timing, for each batch size
_CALIBRATION = 3, 16  # batches, images
_TOP = 5
_BUSY = 0.1  # a larger share of the cores spoils the times
Step = Callable[[str], None]


def run(arguments: argparse.Namespace) -> int:
    missing = [name for name in ("rich", "matplotlib", "PIL") if not importlib.util.find_spec(name)]
    if missing:
        print(f'the demo needs {", ".join(missing)}: pip install "effv2_kernels[demo]"')
        return 2
    from ..measuring.networks import NetworkError

    try:
        return _run(arguments)
    except (NetworkError, OSError) as error:
        print(f"effv2_kernels demo: {error}", file=sys.stderr)
        return 2


@dataclass(frozen=True)
class Setting:
    """Where and how everything runs."""

    device: torch.device
    dtype: torch.dtype
    images: Tensor  # (8, 3, R, R) float32: the photograph and crops of it


def _run(arguments: argparse.Namespace) -> int:
    from ..measuring import networks
    from . import photo

    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    path = arguments.image or photo.default_path()
    picture = photo.read(path)
    with _progress("building the network", 4) as step:
        network = networks.build(arguments.model, arguments.library, arguments.weights)
        draw = torch.Generator().manual_seed(0)
        mean, std = _normalisation(network.model)

        def crops(count: int) -> Tensor:
            return photo.normalise(
                photo.crops(picture, arguments.resolution, count, draw), mean, std
            )

        step("statistics for the batch norms")
        if not network.trained:
            count, size = _CALIBRATION
            networks.calibrate(network.model, (crops(size) for _ in range(count)))
        first = photo.normalise(photo.whole(picture, arguments.resolution), mean, std)
        setting = Setting(device, getattr(torch, dtype), torch.cat([first, crops(7)]))
        network.model.to(device, setting.dtype)
        _print_header(network, setting, path)
        patched = copy.deepcopy(network.model)
        report = effv2_kernels.patch(patched)
        right, lines = _agreement(network, patched, setting, step)
    print("\n".join(lines))
    print(f"\n{report}\n")
    if not right:
        print("The patched network is wrong: nothing is timed.")
        return 1
    _time(arguments, network, patched, setting)
    return 0


def _print_header(network: Network, setting: Setting, path: str | Path) -> None:
    where = f"{torch.get_num_threads()} threads"
    if setting.device.type == "cuda":
        where = torch.cuda.get_device_name(setting.device)
    size = "x".join(map(str, setting.images.shape[-2:]))
    print(f"network   {network.title}, weights: {network.weights}")
    if not network.trained:
        print("          random weights: the labels mean nothing, the agreement does")
    print(f"picture   {Path(path).name} and 7 crops of it, {size}")
    print(f"machine   {setting.device.type}, {where}, {_dtype_name(setting.dtype)}")
    print(f"versions  effv2_kernels {effv2_kernels.__version__}, torch {torch.__version__}\n")


def _agreement(
    network: Network, patched: nn.Module, setting: Setting, step: Step
) -> tuple[bool, list[str]]:
    """Whether every patched network is as good as PyTorch, and the table that shows it."""
    from ..measuring.networks import reference

    step("float64 reference")
    exact = _forward(copy.deepcopy(network.model).double(), setting.images.to(setting.device))
    step("outputs")
    images = setting.images.to(setting.device, setting.dtype)
    eager = _forward(network.model, images)
    outputs = {
        f"{network.library}": eager,
        f"{network.library}, patched": _forward(patched, images),
    }
    ours = reference(network) if network.library != "python_ref" else None
    if ours is not None:
        ours.to(setting.device, setting.dtype)
        outputs["python_ref, same weights"] = _forward(ours, images)
        effv2_kernels.patch(ours)
        outputs["python_ref, patched"] = _forward(ours, images)
    found = {name: compare(output, eager, exact, _TOP) for name, output in outputs.items()}
    error = found[network.library].error
    lines = _top_lines(network, eager, outputs[f"{network.library}, patched"])
    lines += _agreement_table(found)
    return all(acceptable(a.error, error) for a in found.values()), lines


def _top_lines(network: Network, eager: Tensor, patched: Tensor) -> list[str]:
    """The photograph's best classes, unpatched and patched."""
    lines = []
    for title, output in (("unpatched", eager), ("patched", patched)):
        best = output[0].double().softmax(0).topk(min(_TOP, output.shape[1]))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        shown = ", ".join(f"{_label(network, i)} {p:.2%}" for i, p in pairs)
        lines.append(f"top {_TOP}, {title + ':':<10} {shown}")
    return [*lines, ""]


def _agreement_table(found: dict[str, Agreement]) -> list[str]:
    lines = [f"  {'outputs':<26}error against float64   top {_TOP} as unpatched (same order, any)"]
    for name, a in found.items():
        same = f"{a.same_order} and {a.same_set} of {a.images} images"
        lines.append(f"  {name:<26}{a.error:<24.2e}{same}")
    return lines


def _time(
    arguments: argparse.Namespace, network: Network, patched: nn.Module, setting: Setting
) -> None:
    from . import chart

    device, others = setting.device, Share()
    nhwc: nn.Module = copy.deepcopy(network.model)
    nhwc.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    times: dict[int, dict[str, Quantiles]] = {}
    ratios: dict[int, dict[str, Quantiles]] = {}
    for batch in arguments.batch:
        repeats = -(-batch // len(setting.images))
        x = setting.images.repeat(repeats, 1, 1, 1)[:batch].to(device, setting.dtype).contiguous()
        x_nhwc = x.contiguous(memory_format=torch.channels_last)
        calls: dict[str, Callable[[], Any]] = {
            "eager contiguous": partial(network.model, x),
            BASELINE: partial(nhwc, x_nhwc),
        }
        if arguments.compile:
            calls["torch.compile"] = partial(torch.compile(nhwc, dynamic=False), x_nhwc)
        calls["effv2"] = partial(patched, x_nhwc)
        seconds = _seconds(calls, arguments.rounds, device, f"timing batch {batch}")
        times[batch] = {
            name: quantiles(1000 * value for value in found) for name, found in seconds.items()
        }
        ratios[batch] = {
            name: paired_ratio(seconds[BASELINE], found) for name, found in seconds.items()
        }
    print("\n".join(_times_table(times, ratios)))
    if others.now() > _BUSY:
        print(f"  Other processes used {others.now():.0%} of the cores: do not trust these times.")
    path = Path(arguments.output) / f"{network.name}_{device.type}.png"
    dtype = _dtype_name(setting.dtype)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    size = setting.images.shape[-1]
    title = f"{network.title}, {size} px, {dtype}, {where}: time of a forward"
    chart.save(path, title, times, BASELINE, ratios)
    print(f"\nchart: {path}")


def _seconds(
    calls: dict[str, Callable[[], Any]], rounds: int | None, device: torch.device, title: str
) -> dict[str, list[float]]:
    with torch.inference_mode():
        with _progress(f"{title}: warm-up"):
            one_round = warm_up(calls, device)
        rounds = rounds or max(5, min(200, round(_SECONDS / one_round)))
        with _progress(title, rounds) as step:
            return interleaved(calls, rounds, device, lambda: step(title))


def _times_table(
    times: dict[int, dict[str, Quantiles]], ratios: dict[int, dict[str, Quantiles]]
) -> list[str]:
    lines = [
        f"  {'batch':<7}{'':<21}{'median ms':>10}{'p20':>9}{'p80':>9}   times as fast as {BASELINE}"
    ]
    for batch, found in times.items():
        for name, q in found.items():
            r = ratios[batch][name]
            ratio = "1" if name == BASELINE else f"{r.median:.2f} ({r.p20:.2f} to {r.p80:.2f})"
            lines.append(
                f"  {batch:<7}{name:<21}{q.median:>10.2f}{q.p20:>9.2f}{q.p80:>9.2f}   {ratio}"
            )
        lines.append(f"  {'':<7}{q.samples} interleaved rounds; ratios within a round")
    return lines


def _forward(model: nn.Module, images: Tensor) -> Tensor:
    dtype = next(model.parameters()).dtype
    with torch.inference_mode():
        return model(images.to(dtype))


def _normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from . import photo

    config = getattr(model, "pretrained_cfg", None) or {}
    return config.get("mean", photo.MEAN), config.get("std", photo.STD)


def _label(network: Network, index: int) -> str:
    """A class's name, where the weights make it mean something and torchvision has the names."""
    names: list[str] = []
    if network.trained and importlib.util.find_spec("torchvision"):
        from torchvision.models._meta import _IMAGENET_CATEGORIES

        names = _IMAGENET_CATEGORIES
    return names[index] if len(names) == 1000 > index else f"class {index}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _progress(title: str, total: int | None = None) -> Iterator[Step]:
    """A bar on the error stream, gone when it is done. Each call of the step names what comes
    next and moves the bar by one."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda description: bar.update(task, description=description, advance=1)
