"""The suites by name. Each yields lists of rows, a case at a time, so that a run that is cut short
leaves what it measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from ..options import Options
from ..results import Row
from . import (
    cpu,
    cpu_training,
    headline,
    networks,
    operators,
    placement,
    recipe,
    roofline,
    static,
    training,
)


@dataclass(frozen=True)
class Suite:
    """run: from options to the rows of one case after another."""

    name: str
    help: str
    run: Callable[[Options], Iterator[list[Row]]]


def _operator(name: str, what: str) -> Suite:
    return Suite(name, f"microbenchmark: {what}", partial(operators.run, name))


#: The most telling first: what a budget cuts off is at the end.
SUITES = {
    suite.name: suite
    for suite in (
        Suite("roofline", "bytes, operations, floors and times, block by block", roofline.roofline),
        Suite("models", "throughput of whole networks and the paper's peers", networks.models),
        Suite("latency", "a batch of one, CUDA graphs included", networks.latency),
        _operator("depthwise", "depthwise convolution + bias + SiLU + squeeze"),
        _operator("expand_depthwise", "1x1 expand + SiLU + depthwise + SiLU + squeeze"),
        _operator("fused_mbconv", "3x3 expand + SiLU + 1x1 project (+ residual)"),
        _operator("conv", "dense convolution + bias + SiLU (+ residual)"),
        _operator("project", "1x1 projection of a gated map (+ residual)"),
        _operator("stem", "the first convolution + bias + SiLU"),
        _operator("gate", "the two layers of squeeze-and-excite"),
        _operator("head", "1x1 convolution + SiLU + global mean"),
        Suite("train", "forward, backward and optimizer of a training step", training.train),
        Suite("memory", "what autograd keeps for the backward", training.memory),
        Suite("placement", "the paper's table 3: Fused-MBConv in more and more stages",
              placement.placement),
        Suite("headline", "V2-M against V1-B7, V2-L against ViT-L/16", headline.headline),
        Suite("cpu", "a network on the CPU against eager PyTorch and torch.compile", cpu.cpu),
        Suite("cpu_train", "a training step on the CPU against eager channels_last, and its memory",
              cpu_training.cpu_train),
        Suite("recipe", "the paper's tables 5, 12, 13 and 14: progressive learning, on digits",
              recipe.recipe),
        Suite("static", "registers, spills and tensor-core instructions of every kernel",
              static.static),
    )
}  # fmt: skip
