"""A whole network on the CPU: eager PyTorch in both layouts, ``torch.compile`` and effv2."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import effv2_kernels
from effv2_kernels.cli import networks
from effv2_kernels.cli.timing import Quantiles, paired_ratio, quantiles

from .. import results, timing
from ..quiet import Monitor

HELP = "a network on the CPU against eager PyTorch and torch.compile"
IMPLS = ("eager_nchw", "eager_nhwc", "compile_default", "compile_freezing", "effv2")
DEFAULT_IMPLS = ("eager_nchw", "eager_nhwc", "compile_default", "effv2")
EAGER = "eager_nchw"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument(
        "--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"]
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=41,
        help="timed rounds of each pair of implementations (default: %(default)s)",
    )
    parser.add_argument("--impl", nargs="+", choices=IMPLS, default=list(DEFAULT_IMPLS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quiet",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="repeat rounds in which other processes used more than 5 %% of the cores",
    )
    parser.add_argument("--model", default="efficientnetv2_s")
    parser.add_argument("--library", choices=networks.LIBRARIES, default="timm")


def run(arguments: argparse.Namespace) -> list[results.Row]:
    """Measure all cases. Raises timing.WrongOutput where an output is wrong, quiet.MachineBusy
    where other processes leave no time to measure."""
    network = networks.build(arguments.model, arguments.library)
    draw = torch.Generator().manual_seed(0)
    shape = (3, arguments.resolution, arguments.resolution)
    networks.calibrate(network.model, (torch.randn(8, *shape, generator=draw) for _ in range(3)))
    rows = []
    with _threads(arguments.threads):
        for dtype in arguments.dtype:
            model = copy.deepcopy(network.model).to(getattr(torch, dtype))
            for batch in arguments.batch:
                images = torch.randn(batch, *shape, generator=draw).to(getattr(torch, dtype))
                rows += _case(arguments, network, model, images, dtype)
    return rows


def implementations(
    names: list[str], model: nn.Module, images: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """The named ways to run the network on these images. The model itself is left as it is."""
    nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images_nhwc = images.contiguous(memory_format=torch.channels_last)
    patched = copy.deepcopy(nhwc)
    effv2_kernels.patch(patched, backend="cpu", training=False)
    torch._dynamo.reset()  # each case is compiled for its own shape, as a user's would be
    compiled = torch.compile(nhwc, dynamic=False)
    frozen = torch.compile(copy.deepcopy(nhwc), dynamic=False, options={"freezing": True})
    known: dict[str, Callable[[], Tensor]] = {
        "eager_nchw": lambda: model(images),
        "eager_nhwc": lambda: nhwc(images_nhwc),
        "compile_default": lambda: compiled(images_nhwc),
        "compile_freezing": lambda: frozen(images_nhwc),
        "effv2": lambda: patched(images_nhwc),
    }
    return {name: known[name] for name in known if name in names}


def _case(
    arguments: argparse.Namespace,
    network: networks.Network,
    model: nn.Module,
    images: Tensor,
    dtype: str,
) -> Iterator[results.Row]:
    device = torch.device("cpu")
    names = [EAGER, *arguments.impl]
    title = f"{network.title}, batch {len(images)}, {dtype}"
    print(f"{title}: checking the outputs (torch.compile takes a minute)", file=sys.stderr)
    calls = implementations(names, model, images)  # outside: weights made in inference mode
    with torch.inference_mode():  # have no version counters, so that nothing could be cached
        reference = copy.deepcopy(model).double()(images.double())
        monitor = Monitor() if arguments.quiet else None
        pairs = timing.measure_pairs(calls, reference, EAGER, arguments.pairs, device, monitor)
    where = results.environment(device)

    def entry(impl: str, metric: str, unit: str, q: Quantiles) -> results.Row:
        return results.row(
            where,
            q,
            suite="cpu",
            case=network.title,
            impl=impl,
            metric=metric,
            unit=unit,
            batch=len(images),
            resolution=images.shape[-1],
            dtype=dtype,
        )

    for impl in calls:
        found = [value for seconds in pairs.values() for value in seconds.get(impl, ())]
        yield entry(impl, "latency_ms", "ms", quantiles(1000 * value for value in found))
    for (baseline, impl), seconds in pairs.items():
        ratio = paired_ratio(seconds[baseline], seconds[impl])
        yield entry(impl, f"speedup_vs_{baseline}", "x", ratio)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
