"""The command line: ``python -m effv2_kernels info | demo``.

Nothing in the package imports this folder. A command imports what it needs when it runs, so that
``info`` works where the demo's packages are missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


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
    arguments = parser.parse_args(argv)
    if arguments.command == "info":
        from . import info

        print(info.text())
        return 0
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


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value
