"""Launches are chosen for every shape, by plain functions that need no GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from effv2_kernels.launch import targets
from effv2_kernels.launch.triton import conv, conv_act_pool, dense, fused_mbconv
from effv2_kernels.launch.triton import depthwise as depthwise_triton
from effv2_kernels.launch.triton.families import FAMILIES
from effv2_kernels.launch.triton.selection import choose

SMALL_GPU = dataclasses.replace(
    targets.KNOWN["sm_80"],
    name="one with little shared memory, like an RTX 4090",
    capability=(8, 9),
    multiprocessors=128,
    shared_per_block=101_376,
    shared_per_multiprocessor=102_400,
)
TARGETS = {**targets.KNOWN, "sm_89": SMALL_GPU}
SHAPES: dict[str, list[Any]] = {
    "conv": [
        conv.Shape(rows, channels, out, taps, gated)
        for rows in (1, 144, 18432, 4718592)
        for channels, out, taps, gated in (
            *((3, 24, 9, False), (24, 24, 9, False), (64, 256, 9, False), (1, 1, 1, False)),
            *((160, 960, 1, False), (960, 160, 1, True), (3840, 640, 1, True), (8, 16, 25, False)),
        )
    ],
    "fused_mbconv": [
        fused_mbconv.Shape(rows, c, e, o, 9)
        for rows in (1, 9216, 1179648)
        for c, e, o in ((16, 64, 32), (24, 96, 48), (48, 192, 48), (80, 320, 80), (96, 384, 96))
    ],
    "conv_act_pool": [
        conv_act_pool.Shape(images, pixels, channels, out)
        for images in (1, 128)
        for pixels in (1, 144, 225)
        for channels, out in ((5, 7), (256, 1280), (640, 1280))
    ],
    "depthwise": [
        depthwise_triton.Shape(images, pixels, channels, taps)
        for images in (1, 128)
        for pixels in (1, 144, 576, 36864)
        for channels, taps in ((1, 9), (24, 25), (960, 9), (3840, 9))
    ],
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", dense.KINDS)
@pytest.mark.parametrize("kernel", SHAPES)
def test_a_choice_fits_what_it_is_for(kernel: str, kind: str, name: str) -> None:
    family, target = FAMILIES[kernel], TARGETS[name]
    for shape in SHAPES[kernel]:
        found = family.modelled(shape, kind, target)
        if found is None:
            assert kernel == "fused_mbconv" and not list(family.candidates(shape, kind, target))
            continue
        assert family.fits(shape, found, kind, target)
        assert family.shared_bytes(shape, found, kind) <= target.shared_per_block
        for field, value in dataclasses.asdict(found).items():
            assert value >= (0 if field in ("block_r", "block_f", "resident") else 1)
            if field.startswith(("block", "warps")):
                assert value & (value - 1) == 0


def test_fused_mbconv_is_one_launch_for_every_block_of_the_paper() -> None:
    """In 16 bits, V2-B0 to XL; what its float32 does not hold is two convolutions."""
    for target in TARGETS.values():
        for kind in ("bfloat16", "float16"):
            for shape in SHAPES["fused_mbconv"]:
                assert fused_mbconv.modelled(shape, kind, target) is not None
    huge = fused_mbconv.Shape(10000, 512, 2048, 1024, 9)
    assert choose("fused_mbconv", huge, "bfloat16", targets.KNOWN["sm_90a"]) is None


def test_hopper_gets_tiles_for_its_own_instruction() -> None:
    target = targets.KNOWN["sm_90a"]
    for kernel in ("conv", "fused_mbconv", "conv_act_pool"):
        for shape in SHAPES[kernel]:
            found = FAMILIES[kernel].modelled(shape, "bfloat16", target)
            assert found.block_m >= 64 and found.warps % 4 == 0


def test_the_same_choice_every_time() -> None:
    for kernel, shapes in SHAPES.items():
        target = targets.KNOWN["sm_90a"]
        first, second = (
            FAMILIES[kernel].modelled(shapes[-1], "bfloat16", target) for _ in range(2)
        )
        assert first == second


def test_few_rows_are_spread_and_many_get_large_tiles() -> None:
    target = targets.KNOWN["sm_90a"]
    few = conv.modelled(conv.Shape(144, 1536, 256, 1, True, 0), "bfloat16", target)
    many = conv.modelled(conv.Shape(73728, 960, 160, 1, True, 0), "bfloat16", target)
    programs = -(-144 // few.block_m) * -(-256 // few.block_n) * few.split_k
    assert few.split_k > 1 and programs >= target.multiprocessors // 2
    # Not the largest: on an H200 64 x 160, several to a multiprocessor, beat 128 x 160 by 1.4.
    assert many.split_k == 1 and many.block_m >= 64 and many.width >= 64
    assert few.block_m * few.width < many.block_m * many.width


def test_the_model_knows_what_more_work_costs() -> None:
    target = targets.KNOWN["sm_90a"]
    choice = conv.Choice(128, 128, 64, 1, 8, 3)
    costs = [
        conv.cost(conv.Shape(rows, 160, 960, 1), choice, "bfloat16", target)
        for rows in (2**12, 2**15, 2**18, 2**21)
    ]
    assert costs == sorted(costs) and costs[-1] > 4 * costs[-2]
    slow = conv.cost(conv.Shape(2**18, 160, 960, 1), choice, "float32", target)
    # Its products take 16 times as long; a program's ends, which the model holds for long, do not.
    assert slow > 3 * costs[2]


def test_a_gate_of_many_images_leaves_room_for_fewer_stages() -> None:
    target = targets.KNOWN["sm_90a"]
    small, large = conv.Choice(64, 128, 64, 1, 4, 4), conv.Choice(128, 256, 128, 1, 8, 2)
    assert conv.stages_with_gate(small, "bfloat16", target) == 4
    assert conv.stages_with_gate(large, "bfloat16", target) == 1
    taken = (2 * 128 + 256) * 128 * 2
    assert taken <= target.shared_per_block < 2 * taken


def test_weights_stay_where_that_was_faster_and_nowhere_else() -> None:
    """Of the expansions of V2-S at batch 128, as they were measured on an H200."""
    target = targets.KNOWN["sm_90a"]
    shapes = {
        channels: conv.Shape(rows, channels, out, 1)
        for rows, channels, out in (
            *((294912, 64, 256), (73728, 128, 512), (73728, 160, 960)),
            (18432, 256, 1536),
        )
    }
    stay = {c: conv.modelled(shape, "bfloat16", target).resident > 1 for c, shape in shapes.items()}
    assert stay == {64: True, 128: True, 160: True, 256: False}
    assert conv.modelled(shapes[160], "bfloat16", target).stages > 2
    one_image = dataclasses.replace(shapes[160], rows=576)
    assert conv.modelled(one_image, "bfloat16", target).resident == 0


@pytest.mark.parametrize(
    ("change", "kind", "name"),
    [
        ({"gated": True}, "bfloat16", "sm_90a"),
        ({"channels": 100}, "bfloat16", "sm_90a"),
        ({"taps": 9}, "bfloat16", "sm_90a"),
        ({}, "float32", "sm_90a"),
        ({}, "bfloat16", "sm_80"),
    ],
)
def test_a_tables_choice_is_not_taken_where_weights_cannot_stay(
    change: dict, kind: str, name: str
) -> None:
    choice = conv.Choice(64, 128, 128, 1, 4, 3, resident=2)
    shape = conv.Shape(73728, 160, 960, 1)
    assert conv.fits(shape, choice, "bfloat16", targets.KNOWN["sm_90a"])
    changed = dataclasses.replace(shape, **change)
    assert not conv.fits(changed, choice, kind, targets.KNOWN[name])
