"""The options that all suites share, and what they are where nothing is said."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from effv2_kernels.measuring.networks import LIBRARIES

from . import results
from .budget import Budget

DTYPES = ("float32", "bfloat16", "float16", "autocast_bfloat16", "autocast_float16")


@dataclass(frozen=True)
class Options:
    """What to measure. An empty tuple, or None, leaves the choice to the suite; a suite that is
    run on a CPU, or ``small``, then takes small sizes."""

    device: torch.device
    models: tuple[str, ...] = ()
    library: str | None = None
    batch: tuple[int, ...] = ()
    resolution: int | None = None
    dtype: tuple[str, ...] = ()
    impl: tuple[str, ...] = ()
    shape: tuple[str, ...] = ()
    rounds: int | None = None
    threads: int | None = None
    quiet: bool = False
    small: bool = False
    tables: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    budget: Budget = Budget()
    out: Path | None = None
    #: What must not happen and did: wrong outputs, sections that failed.
    failures: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def full_size(self) -> bool:
        """Whether sizes that are not given are those that tell something, as a GPU has time for."""
        return self.on_gpu and not self.small

    @property
    def folder(self) -> Path:
        """Where CSV files and plots go."""
        return self.out or results.FOLDER / results.slug(self.device)

    def under(self, budget: Budget) -> Options:
        return replace(self, budget=budget)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", metavar="NAME", help="networks, by their short name")
    parser.add_argument("--library", choices=LIBRARIES, help="whose networks (default: timm)")
    parser.add_argument("--batch", type=_positive, nargs="+", metavar="N")
    parser.add_argument("--resolution", type=_positive, metavar="PIXELS")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES)
    parser.add_argument("--impl", nargs="+", metavar="NAME", help="implementations to compare")
    parser.add_argument(
        "--shape",
        nargs="+",
        metavar="SHAPE",
        help="of an operator, such as c512,h24,k3,s1 (c channels, h and w size, k kernel, s stride,"
        " e expanded and o output channels, r channels inside the gate)",
    )
    parser.add_argument("--device", help="(default: cuda if there is one, else cpu)")
    parser.add_argument("--rounds", type=_positive, help="timed rounds of each case")
    parser.add_argument("--threads", type=_positive, help="of PyTorch on a CPU")
    parser.add_argument(
        "--quiet",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="repeat rounds in which other processes used more than 5 %% of the cores",
    )
    parser.add_argument(
        "--small", action="store_true", help="on a GPU, too, the small sizes that a CPU is given"
    )
    parser.add_argument(
        "--tables", type=_positive, nargs="+", metavar="N", help="of the paper, for recipe"
    )
    parser.add_argument(
        "--seeds", type=_positive, nargs="+", metavar="N", help="of trainings, for recipe"
    )
    parser.add_argument(
        "--time-budget", type=float, metavar="SECONDS", help="begin no case after that"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="for the CSV files and plots")


def parse(arguments: argparse.Namespace) -> Options:
    """Raises ValueError for a device that is not there."""
    name = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: PyTorch finds no CUDA GPU")
    if device.type not in ("cuda", "cpu"):
        raise ValueError(f"--device {name}: only cuda and cpu are measured")
    return Options(
        device=device,
        models=tuple(arguments.models or ()),
        library=arguments.library,
        batch=tuple(arguments.batch or ()),
        resolution=arguments.resolution,
        dtype=tuple(arguments.dtype or ()),
        impl=tuple(arguments.impl or ()),
        shape=tuple(arguments.shape or ()),
        rounds=arguments.rounds,
        threads=arguments.threads,
        quiet=arguments.quiet,
        small=arguments.small,
        tables=tuple(arguments.tables or ()),
        seeds=tuple(arguments.seeds or ()),
        budget=Budget(arguments.time_budget),
        out=arguments.out,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value
