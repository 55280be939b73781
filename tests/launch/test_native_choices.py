"""The launch choices of the native kernels: within the limits of every GPU, for every shape that
the models have, and sensible where the right answer is plain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from effv2_kernels.launch.native import depthwise, expand_depthwise
from effv2_kernels.launch.native.expand_depthwise import ExpandDepthwiseLaunch, Problem
from effv2_kernels.launch.targets import KNOWN
from python_ref.variants import find

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def problems(name: str, n: int, dtype: torch.dtype) -> Iterator[Problem]:
    """Every distinct expand + depthwise of a network, at its evaluation size."""
    variant = find(name)
    side, into = -(-variant.eval_size // 2), variant.stem
    seen = set()
    for stage in variant.stages:
        for layer in range(stage.layers):
            stride = stage.stride if layer == 0 else 1
            out = -(-side // stride)
            key = (into, stride, side)
            if stage.kind == "mbconv" and key not in seen:
                seen.add(key)
                size = (side, side), (out, out)
                yield Problem(n, into, into * stage.expand, *size, stage.kernel, stride, dtype)
            side, into = out, stage.channels


@pytest.mark.parametrize("target", KNOWN)
@pytest.mark.parametrize("name", ["s", "m", "l", "v1_b7"])
def test_depthwise_is_within_the_limits(name: str, target: str) -> None:
    for n in (1, 32, 1024):
        for problem in problems(name, n, torch.bfloat16):
            for dtype in DTYPES:
                for squeeze in (False, True):
                    shape = n, problem.channels, problem.out_size
                    window = problem.kernel, problem.stride
                    found = depthwise.choose(*shape, *window, dtype, squeeze, KNOWN[target])
                    check_depthwise(found, problem, dtype, squeeze, target)


def check_depthwise(
    found: depthwise.DepthwiseLaunch,
    problem: Problem,
    dtype: torch.dtype,
    squeeze: bool,
    target: str,
) -> None:
    assert found.channel_threads * found.strip_threads <= depthwise.THREADS
    width = depthwise.channels_of_a_thread(problem.channels, problem.kernel, dtype)
    assert width > 1, "the models' channels fill vectors"
    # Lanes that share a copy of 16 bytes are in the same row of threads.
    assert found.channel_threads % (16 // (width * dtype.itemsize)) == 0
    assert 1 <= found.rows <= problem.out_size[0]
    assert not found.cluster or (squeeze and found.parts in (2, 4, 8) and target != "sm_80")
    # No more blocks than have work, but that a cluster is filled up to a power of two.
    across = -(-problem.out_size[1] // depthwise.columns_of_a_strip(problem.kernel, width))
    blocks = -(-across * -(-problem.out_size[0] // found.rows) // found.strip_threads)
    assert found.parts <= blocks or (found.cluster and found.parts < 2 * blocks)


@pytest.mark.parametrize("target", KNOWN)
@pytest.mark.parametrize("name", ["s", "m", "l", "v1_b7"])
def test_expand_depthwise_is_within_the_limits(name: str, target: str) -> None:
    limits = KNOWN[target]
    for n in (1, 64):
        for problem in problems(name, n, torch.float16):
            found = expand_depthwise.fused(problem, limits)
            assert found is not None, "it always fits"
            clocks, layout = found
            assert 0 < clocks < float("inf")
            assert expand_depthwise.shared_bytes(problem, layout) <= limits.shared_per_block
            assert layout.chunk in (32, 64) and layout.chunks >= 1
            assert 1 <= layout.rows <= layout.tile_height <= problem.out_size[0]
            chosen = expand_depthwise.choose(problem, limits)
            separate = expand_depthwise.separate_clocks(problem, limits)
            assert chosen == (layout if clocks <= separate else None)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": torch.float32},
        {"in_channels": 20},
        {"channels": 100},
        {"kernel": 7},
        {"stride": 3},
        {"in_channels": 2048},
    ],
    ids=str,
)
def test_what_the_fused_kernel_does_not_take(change: dict) -> None:
    fits = {
        **{"n": 1, "in_channels": 16, "channels": 64, "size": (8, 8), "out_size": (8, 8)},
        **{"kernel": 3, "stride": 1, "dtype": torch.float16},
    }
    assert expand_depthwise.fused(Problem(**fits), KNOWN["sm_90a"]) is not None
    assert expand_depthwise.choose(Problem(**(fits | change)), KNOWN["sm_90a"]) is None


def test_deep_products_are_left_to_a_matrix_kernel() -> None:
    """At 512 channels the arithmetic of mma.sync costs more than the traffic that fusing saves."""
    for target in KNOWN.values():
        deep = Problem(128, 512, 3072, (15, 15), (15, 15), 3, 1, torch.bfloat16)
        assert expand_depthwise.choose(deep, target) is None


def test_shallow_products_on_large_maps_are_fused_where_memory_is_slow() -> None:
    """There the expanded tensor is nearly all of the traffic."""
    shallow = Problem(128, 16, 96, (112, 112), (56, 56), 3, 2, torch.bfloat16)
    assert isinstance(expand_depthwise.choose(shallow, KNOWN["sm_80"]), ExpandDepthwiseLaunch)
    slow = replace(KNOWN["sm_90a"], memory_rate=KNOWN["sm_80"].memory_rate)  # as an H100 has it
    assert isinstance(expand_depthwise.choose(shallow, slow), ExpandDepthwiseLaunch)


# Microseconds of the 1x1 expansion and of the depthwise convolution, each alone on an H200, at
# batch 128 (the tuned table and results/nvidia_h200): (in_channels, channels, size, stride).
TWO_OPS = {
    (64, 256, 48, 2): (63.2, 50.5),
    (128, 512, 24, 1): (46.1, 47.3),
    (128, 768, 24, 1): (67.2, 67.5),
    (160, 960, 24, 1): (94.8, 85.0),
    (160, 960, 24, 2): (94.8, 50.2),
    (256, 1536, 12, 1): (50.2, 37.6),
}


@pytest.mark.parametrize("shape", TWO_OPS)
def test_two_ops_take_about_what_they_took(shape: tuple[int, int, int, int]) -> None:
    into, channels, size, stride = shape
    out = size // stride
    problem = Problem(128, into, channels, (size, size), (out, out), 3, stride, torch.bfloat16)
    clocks = expand_depthwise.separate_clocks(problem, KNOWN["sm_90a"])
    assert clocks / 1755 == pytest.approx(sum(TWO_OPS[shape]), rel=0.15)


@pytest.mark.parametrize("capability", [(8, 6), (8, 9), (11, 0), (12, 0), (13, 0)])
def test_other_gpus(capability: tuple[int, int]) -> None:
    """Ones with less shared memory, and ones that nobody knows yet."""
    shared = {"shared_per_block": 101_376, "shared_per_multiprocessor": 102_400}
    other = replace(KNOWN["sm_80"], capability=capability, **shared)
    for problem in problems("s", 32, torch.bfloat16):
        found = expand_depthwise.fused(problem, other)
        if found is not None:
            assert expand_depthwise.shared_bytes(problem, found[1]) <= other.shared_per_block
        expand_depthwise.choose(problem, other)
        shape = 32, problem.channels, problem.out_size, problem.kernel, problem.stride
        layout = depthwise.choose(*shape, torch.bfloat16, True, other)
        assert not layout.cluster or capability >= (9, 0)


def test_odd_channels_take_one_channel_a_thread() -> None:
    found = depthwise.choose(1, 7, (5, 5), 3, 1, torch.float16, True, KNOWN["sm_90a"])
    assert depthwise.channels_of_a_thread(7, 3, torch.float16) == 1
    assert found.channel_threads * found.strip_threads <= depthwise.THREADS


@pytest.mark.parametrize("target", KNOWN)
@pytest.mark.parametrize(
    ("channels", "side", "stride"), [(960, 24, 1), (512, 24, 1), (1536, 12, 1), (256, 24, 2)]
)
def test_no_warp_of_v2_s_is_idle(channels: int, side: int, stride: int, target: str) -> None:
    """Every lane has a strip and every block all of an image: at batch 128 and 256 channels, on
    the largest GPU, half."""
    shape = 128, channels, (side, side), 3, stride, torch.bfloat16, True
    found = depthwise.choose(*shape, KNOWN[target])
    assert found.channel_threads * found.strip_threads % 32 == 0
    width = depthwise.channels_of_a_thread(channels, 3, torch.bfloat16)
    assert channels % (found.channel_threads * width) == 0
    across = -(-side // depthwise.columns_of_a_strip(3, width))
    strips = across * -(-side // found.rows)
    assert strips % (found.strip_threads * found.parts) == 0 and found.parts <= 2


def test_an_image_alone_is_split_and_many_are_not() -> None:
    shape = 960, (24, 24), 3, 1, torch.bfloat16, True
    alone = depthwise.choose(1, *shape, KNOWN["sm_90a"])
    many = depthwise.choose(256, *shape, KNOWN["sm_90a"])
    assert alone.cluster and alone.parts in (4, 8)
    assert many.parts == 1 and not many.cluster


def test_without_clusters_a_second_launch_is_weighed() -> None:
    """sm_80: few images are split all the same where the map is large."""
    shape = 192, (150, 150), 3, 2, torch.bfloat16, True
    assert depthwise.choose(1, *shape, KNOWN["sm_80"]).parts > 8
