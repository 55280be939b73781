"""The ops of ``effv2_native`` as csrc/*_ops.cpp offer them, on CPU tensors, by the drivers:
``effv2_kernels.engines.native`` can then be tested whole."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from effv2_kernels.engines import native as cuda
from effv2_kernels.launch import targets
from tests.cuda_host.runner import ACTS, DTYPES, HERE, Driver, driver


class Native:
    """Stands for ``torch.ops.effv2_native``. ``offset``: elements by which every input misses an
    aligned address, ``vector_offset``: every input of one dimension; ``launch``: instead of the
    launch choice; ``multiprocessors``: of the GPU; ``calls``: what was called."""

    def __init__(self, factory: pytest.TempPathFactory, target: str = "sm_90a") -> None:
        self.factory = factory
        self.target = target
        self.offset = 0
        self.vector_offset = 0
        self.multiprocessors = 132
        self.launch: list[int] | None = None
        self.calls: list[str] = []
        self.answers: list[int] = []
        for name in ("depthwise_bias_act", "expand_depthwise", "stem", "convert"):
            setattr(self, name, SimpleNamespace(default=getattr(self, f"_{name}")))

    def driver(self, name: str) -> Driver:
        return driver(self.factory, HERE / "drivers" / f"{name}.cpp")

    def run(
        self,
        name: str,
        integers: Sequence[int],
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor | None],
    ) -> list[Tensor]:
        """The outputs that there are; nothing else may have changed."""
        self.calls.append(name)
        clusters = targets.KNOWN[self.target].capability >= (9, 0)
        run = self.driver(name)
        buffers = [*inputs, *outputs]  # outputs are new tensors, and aligned
        offsets = [
            self.offset or (self.vector_offset if t is not None and t.dim() == 1 else 0)
            for t in inputs
        ]
        offsets += [0] * len(outputs)
        found, self.answers = run(
            *(integers, buffers),
            multiprocessors=self.multiprocessors,
            clusters=clusters,
            offset=offsets,
        )
        for before, after in zip(inputs, found[: len(inputs)], strict=True):
            assert before is None or torch.equal(bits(before), bits(after)), "an input changed"
        return [tensor for tensor in found[len(inputs) :] if tensor is not None]

    def _depthwise_bias_act(
        self, x, weight, bias, norm, eps, stride, padding, act, squeeze, launch
    ):
        assert is_dense(x, torch.channels_last) and weight.is_contiguous()
        y, pooled, size = outputs(x, x.shape[1], weight, stride, padding, squeeze)
        numbers, vectors = scaling(bias, norm, eps)
        integers = [
            *(DTYPES[x.dtype], ACTS.index(act), x.shape[0], x.shape[1], *x.shape[2:], *size),
            *(weight.shape[2], stride[0], padding[0], padding[2], *(self.launch or launch)),
        ]
        inputs = [x, weight, *vectors]
        found = self.run("depthwise", [*integers, *numbers], inputs, [y, pooled])
        return found[0], found[1] if squeeze else x.new_empty((x.shape[0], 0))

    def _expand_depthwise(self, x, *args):
        expand_weight, *expand, weight, bias, norm, eps, stride, padding, act, squeeze, launch = (
            args
        )
        assert is_dense(x, torch.channels_last)
        assert weight.is_contiguous() and expand_weight.is_contiguous()
        channels = weight.shape[0]
        y, pooled, size = outputs(x, channels, weight, stride, padding, squeeze)
        expand_numbers, expand_vectors = scaling(*expand)
        numbers, vectors = scaling(bias, norm, eps)
        integers = [
            *(DTYPES[x.dtype], ACTS.index(act), *x.shape[:2], channels, *x.shape[2:], *size),
            *(weight.shape[2], stride[0], padding[0], padding[2], *(self.launch or launch)),
            *(*expand_numbers, *numbers),
        ]
        inputs = [x, expand_weight, *expand_vectors, weight, *vectors]
        found = self.run("expand_depthwise", integers, inputs, [y, pooled])
        return found[0], found[1] if squeeze else x.new_empty((x.shape[0], 0))

    def _stem(self, x, weight, bias, norm, eps, stride, padding, act):
        assert is_dense(x, torch.channels_last) or x.is_contiguous()
        y, _, size = outputs(x, weight.shape[0], weight, stride, padding, False)
        numbers, vectors = scaling(bias, norm, eps)
        integers = [
            *(DTYPES[weight.dtype], DTYPES[x.dtype], ACTS.index(act), x.shape[0]),
            *(weight.shape[0], *x.shape[2:], *size, padding[0], padding[2]),
            *(int(x.is_contiguous()), *weight.stride(), *numbers),
        ]
        return self.run("stem", integers, [x, weight, *vectors], [y])[0]

    def _convert(self, sources, dtype):
        integers = [DTYPES[dtype], len(sources)]
        targets = []
        for source in sources:
            map_like = source.dim() == 4
            stays = source.is_contiguous(memory_format=torch.channels_last) if map_like else True
            assert stays or source.is_contiguous()
            shape = [0, 1] if stays else [source.shape[1], source.shape[2] * source.shape[3]]
            integers += [DTYPES[source.dtype], source.numel(), *shape]
            layout = torch.channels_last if map_like else torch.contiguous_format
            target = torch.empty(source.shape, dtype=dtype, memory_format=layout)
            targets.append(target.fill_(torch.nan))
        return self.run("convert", integers, sources, targets)


def scaling(
    bias: Tensor | None, norm: Sequence[Tensor], eps: float
) -> tuple[list[int], list[Tensor | None]]:
    """Integers and buffers of a Norm, as tests/cuda_host/norm.h takes them."""
    vectors = [bias, *norm, *[None] * (4 - len(norm))]
    for vector in vectors:
        assert vector is None or vector.is_contiguous()
    floats = [int(v is not None and v.dtype == torch.float32) for v in vectors[:2]]
    return [*floats, torch.tensor(eps).view(torch.int32).item()], vectors


def outputs(
    x: Tensor, channels: int, weight: Tensor, stride: Sequence[int], padding: Sequence[int], squeeze
) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
    """y and pooled, full of NaN, and y's height and width."""
    top, bottom, left, right = padding
    height = (x.shape[2] + top + bottom - weight.shape[2]) // stride[0] + 1
    width = (x.shape[3] + left + right - weight.shape[3]) // stride[1] + 1
    shape, dtype = (x.shape[0], channels, height, width), weight.dtype
    y = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last).fill_(torch.nan)
    pooled = torch.full(shape[:2], torch.nan, dtype=dtype) if squeeze else None
    return y, pooled, (height, width)


def is_dense(tensor: Tensor, memory_format: torch.memory_format) -> bool:
    return tensor.is_contiguous(memory_format=memory_format)


def bits(tensor: Tensor) -> Tensor:
    """Comparable even where it is NaN."""
    return tensor.flatten().view(torch.uint8)


@pytest.fixture(params=["sm_90a"])
def native(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Native:
    """``engines.native`` with the drivers for a GPU; parametrise with names of targets."""
    if not isinstance(request.param, str):
        raise TypeError("the name of a target")
    stand_in = Native(tmp_path_factory, request.param)
    monkeypatch.setattr(cuda, "NATIVE", stand_in)
    monkeypatch.setattr(targets, "of_device", lambda device: targets.KNOWN[request.param])
    return stand_in
