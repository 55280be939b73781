"""The command line: ``python -m effv2_kernels info | demo | tune | train``.

Nothing in the package imports this folder. A command imports what it needs when it runs, so that
``info`` works where the demo's packages are missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from . import train


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m effv2_kernels",
        description="Fused kernels for EfficientNetV2 and EfficientNet in PyTorch.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("info", help="versions, what was built, which backends can run and why not")
    demo = commands.add_parser(
        "demo",
        help="a photograph through a network, patched and not: agreement, report, times",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _demo_arguments(demo)
    tune = commands.add_parser(
        "tune",
        help="the fastest launches of the Triton kernels on this GPU",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _tune_arguments(tune)
    training = commands.add_parser(
        "train", help="the paper's recipe on a folder of images: progressive learning, patched"
    )
    train.arguments(training)
    arguments = parser.parse_args(argv)
    if arguments.command == "info":
        from . import info

        print(info.text())
        return 0
    if arguments.command == "train":
        return train.run(arguments)
    if arguments.command == "tune":
        from . import tune as tune_command

        return tune_command.run(arguments)
    from . import demo as demo_command

    return demo_command.run(arguments)


def _demo_arguments(demo: argparse.ArgumentParser) -> None:
    demo.add_argument("--image", metavar="FILE", help="a photograph (default: matplotlib's)")
    demo.add_argument("--model", default="efficientnetv2_s", help="a network of the library")
    demo.add_argument(
        "--library",
        choices=("timm", "torchvision", "python_ref"),
        help="whose network (default: timm if installed, else torchvision)",
    )
    demo.add_argument(
        "--weights", metavar="FILE", help="state dict, .pth or .safetensors (default: random)"
    )
    demo.add_argument("--resolution", type=_positive, default=224, help="pixels on a side")
    demo.add_argument("--batch", type=_positive, nargs="+", default=[1, 8], help="sizes to time")
    demo.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="(default: float32 on a CPU, bfloat16 on a GPU)",
    )
    demo.add_argument("--device", help="(default: cuda if there is one, else cpu)")
    demo.add_argument("--compile", action="store_true", help="time torch.compile too (a minute)")
    demo.add_argument("--rounds", type=_positive, help="timed rounds (default: about 10 seconds)")
    demo.add_argument("--output", metavar="DIR", default="demo_output", help="for the chart")


def _tune_arguments(tune: argparse.ArgumentParser) -> None:
    tune.add_argument(
        "--model", nargs="+", default=["efficientnetv2_s"], help="networks of python_ref"
    )
    tune.add_argument(
        "--sizes",
        type=_positive,
        nargs="+",
        help="pixels on a side (default: the network's training and evaluation size)",
    )
    tune.add_argument("--batch", type=_positive, nargs="+", default=[1, 128], help="batch sizes")
    tune.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of it all"
    )
    tune.add_argument("--minutes", type=float, default=8.0, help="no launch is begun after that")
    tune.add_argument(
        "--candidates", type=_positive, default=24, help="tried for each launch, at most"
    )
    tune.add_argument("--again", action="store_true", help="also what the table has already")
    tune.add_argument(
        "--log", metavar="FILE", type=Path, help="every candidate's time, a JSON object a line"
    )
    tune.add_argument("--output", metavar="DIR", help="for the table (default: the package's)")
    tune.add_argument(
        "--rehearse",
        action="store_true",
        help="no GPU: the cost model's estimates for an H200 in place of times; needs --output",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value
