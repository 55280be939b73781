"""What a report says runs on a GPU is what the host side of the engines then launches there: seen
without one, on tensors of the device "meta", with stand-ins for the last step of each launch."""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import effv2_kernels as ek
import python_ref
from effv2_kernels import ops
from effv2_kernels.blocks import Block
from effv2_kernels.engines import native as cuda
from effv2_kernels.engines import triton as triton_ops
from effv2_kernels.launch import targets
from effv2_kernels.patching import choices
from effv2_kernels.running.inference import BlockRunner

pytestmark = pytest.mark.skipif(bool(triton_ops.missing()), reason="Triton is not installed")
NETWORKS = ("efficientnetv2_s", "efficientnetv2_m", "efficientnetv2_l")
#: The kernels of Triton that an op's launch may have, beside those that add up parts.
OF_OP = {
    "conv_bias_act": "conv_kernel",
    "gated_project": "conv_kernel",
    "stem": "conv_kernel",
    "fused_mbconv": "fused_mbconv_kernel",
    "conv_act_pool": "conv_act_pool_kernel",
    "depthwise_bias_act": "depthwise_kernel",
}
FINISHING = ("finish_split_kernel", "finish_mean_kernel")
#: By its shape an op may have the other kernel.
SAME = {"pointwise_kernel": "conv_kernel"}


class Launches:
    """Counts launches: of native ops by their name, of Triton by the kernel's."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def native(self) -> SimpleNamespace:
        def op(name: str) -> SimpleNamespace:
            def run(*arguments: Any) -> Any:
                self.found[f"native {name}"] += 1
                return FAKES[name](*arguments)

            return SimpleNamespace(default=run)

        return SimpleNamespace(**{name: op(name) for name in FAKES})

    def triton(self, kernel: Any, *_: Any, **__: Any) -> None:
        name = SAME.get(kernel.fn.__name__, kernel.fn.__name__)
        if name not in FINISHING:
            self.found[name] += 1


def _outputs(op: str, given: tuple, leave: int) -> Any:
    """By the op's fake: a native op's arguments end with its launch, ``leave`` of them."""
    return ops.OPS[op].fake(*given[: len(given) - leave])


FAKES = {
    "stem": lambda *a: _outputs("stem", a, 0),
    "depthwise_bias_act": lambda *a: _outputs("depthwise_bias_act", a, 1),
    "expand_depthwise": lambda *a: _outputs("expand_depthwise", a, 1),
    "squeeze_excite_gate": lambda *a: _outputs("squeeze_excite_gate", a, 0),
}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    counted = Launches()
    monkeypatch.setattr(cuda, "LOADED", True)
    monkeypatch.setattr(cuda, "NATIVE", counted.native())
    for name in ("conv", "pointwise", "fused_mbconv", "pool", "depthwise"):
        monkeypatch.setattr(f"effv2_kernels.engines.triton.{name}.launch", counted.triton)
    return counted


def named(texts: tuple[str, ...]) -> Counter[str]:
    """The launches that a report's words announce."""
    found: Counter[str] = Counter()
    for op, engine in re.findall(r"(\w+)\[(\w+)\]", " ".join(texts)):
        assert engine in ("cuda", "triton"), f"{op} runs through {engine}"
        found[f"native {op}" if engine == "cuda" else OF_OP[op]] += 1
    return found


def run(block: Block, x: Tensor, target: targets.Target, pooled: bool) -> None:
    """The block's ops on the engines that dispatch chooses, whose host side runs."""
    from effv2_kernels.engines.triton._launch import recording
    from effv2_kernels.running.live import Parts, live
    from effv2_kernels.running.sequences import SEQUENCES, pooled_head

    engines = ops.Engines(ops.OPS, "cuda", target=target)
    sequence = pooled_head if pooled else SEQUENCES[type(block)]
    with recording(target):
        sequence(engines, block, live([Parts(block)], x.dtype)[0], x)


@pytest.mark.parametrize("architecture", targets.KNOWN)
@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_what_is_said_is_what_is_launched(
    network: str, architecture: str, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = targets.KNOWN[architecture]
    monkeypatch.setattr(targets, "of_device", lambda device: target)
    with torch.device("meta"):
        model = python_ref.create(network).eval().to(torch.bfloat16)
    ek.patch(model)
    shapes = inputs_of(model, python_ref.VARIANTS[network].eval_size)
    assert len(shapes) > 40
    where = choices.Where("cuda", target)
    varying = 0
    for block, shape, pooled in shapes:
        texts, _ = choices.by_batch(block, shape, torch.bfloat16, where, pooled=pooled)
        varying += any(" at batch " in text for text in texts)
        for batch in choices.BATCHES:
            said = tuple(part(text, batch) for text in texts)
            x = torch.empty((batch, *shape[1:]), dtype=torch.bfloat16, device="meta")
            launches.found.clear()
            run(block, x, target, pooled)
            assert launches.found == named(said), (texts, batch)
            assert launches.found.total() >= len(texts)
    print(f"{network}, {architecture}: {varying} of {len(shapes)} blocks depend on the batch")


def part(text: str, batch: int) -> str:
    """What a report's text says of one batch."""
    found = re.findall(r"(.+?) at batch (\d+)(?:, |$)", text)
    return next((words for words, n in found if int(n) == batch), text)


def inputs_of(model: nn.Module, size: int) -> list[tuple[Block, torch.Size, bool]]:
    """Each block of the model with the shape of its input, and whether its mean is fused."""
    found: list[tuple[Block, torch.Size, bool]] = []
    honest = BlockRunner.run

    def noting(self: BlockRunner, x: Tensor, sequence: Any = None) -> Tensor:
        found.append((self.block, x.shape, sequence is not None))
        return honest(self, x, sequence)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(BlockRunner, "run", noting)
        model(torch.empty(1, 3, size, size, dtype=torch.bfloat16, device="meta"))
    return found
