"""The committed table of what the compiler makes of the Triton kernels, and that it is of these
kernels."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from benchmarks import results
from effv2_kernels.engines import triton as triton_ops
from effv2_kernels.launch.targets import KNOWN
from effv2_kernels.measuring.machine import version_of

if triton_ops.missing() or triton_ops.interpreted():
    pytest.skip("Triton compiles nothing here", allow_module_level=True)

from benchmarks.static import triton as static
from effv2_kernels.engines.triton._compile import compile_all, compile_for

PATH = results.FOLDER / "static" / "triton.csv"
ROWS = results.read(PATH)
KERNELS = [row for row in ROWS if row.case != static.SOURCES]
GEMMS = ("conv ", "pointwise ", "fused_mbconv ", "conv_act_pool ")
REMAKE = "remake it with benchmarks.static.triton.rows()"


def by_kernel(architecture: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for row in KERNELS:
        if row.gpu == architecture:
            found[row.case][row.metric] = int(row.value)
    return found


def test_the_table_is_of_these_sources() -> None:
    (row,) = [row for row in ROWS if row.case == static.SOURCES]
    assert row.value == static.fingerprint(), f"kernels or launches changed: {REMAKE}"


def test_comments_do_not_count_as_a_change() -> None:
    code = 'x = 1\ndef f(a):\n    """Doc."""\n    return a\n'
    other = 'x = 1  # one\n\n\ndef f(a):\n    """Other."""\n    return a\n'
    assert static._code(code) == static._code(other) != static._code(code.replace("1", "2"))


@pytest.mark.parametrize("architecture", KNOWN)
def test_nothing_spills_and_everything_fits(architecture: str) -> None:
    table = by_kernel(architecture)
    assert len(table) > 200
    for case, found in table.items():
        assert set(found) == set(static._UNITS), case
        assert found["spill_bytes"] == 0, case
        assert 0 < found["registers"] <= 255, case
        assert found["shared_bytes"] <= KNOWN[architecture].shared_per_block, case


def on_newest_cores(case: str, architecture: str) -> bool:
    """Whether a kernel multiplies matrices by the architecture's own instruction. Hopper's takes 64
    rows; smaller tiles, where they were measured to be faster, have Ampere's."""
    rows = re.search(r"\bblock_m=(\d+)", case)
    small = architecture == "sm_90a" and rows is not None and int(rows[1]) < 64
    return case.startswith(GEMMS) and not small


@pytest.mark.parametrize("architecture", KNOWN)
def test_products_are_on_the_tensor_cores(architecture: str) -> None:
    """wgmma on sm_90a, in every kernel that multiplies matrices: gated ones too."""
    table = by_kernel(architecture)
    dense = {case: found for case, found in table.items() if case.startswith(GEMMS)}
    streams = {"pointwise"} if architecture == "sm_90a" else set()
    assert {case.split()[0] for case in dense} == {
        "conv",
        "fused_mbconv",
        "conv_act_pool",
    } | streams
    assert any(" gated " in case for case in dense)
    for case, found in dense.items():
        assert (found["tensor_core_instructions"] > 0) == on_newest_cores(case, architecture), case


def test_small_tiles_are_chosen_on_hopper_only_where_they_were_measured() -> None:
    from effv2_kernels.launch import tables

    entries = tables.read(tables.path_of("NVIDIA H200"))
    measured = {
        (e.kernel, e.shape.channels, e.shape.out_channels, e.choice.block_m) for e in entries
    }
    small = [
        case
        for case in by_kernel("sm_90a")
        if case.startswith(GEMMS) and not on_newest_cores(case, "sm_90a")
    ]
    assert small
    for case in small:
        n = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)\b", case)}
        assert (case.split()[0], n["c"], n["out"], n["block_m"]) in measured, case


@pytest.mark.parametrize("architecture", KNOWN)
def test_the_estimate_of_shared_memory_is_an_upper_bound(architecture: str) -> None:
    """What launches are chosen by, against what the compiler took."""
    from effv2_kernels.launch.triton import conv, conv_act_pool, fused_mbconv

    seen = 0
    for case, found in by_kernel(architecture).items():
        if not case.startswith(GEMMS):
            continue
        n = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)\b", case)}
        blocks = n["block_m"], n.get("block_n", n.get("block_e", 0)), n["block_k"]
        end = n["warps"], n["stages"]
        if case.startswith("pointwise "):
            choice = conv.Choice(*blocks, 1, *end, resident=1)
            estimate = conv.shared_bytes(conv.Shape(1000, n["c"], n["out"], 1), choice, "bfloat16")
            assert found["shared_bytes"] <= estimate, case
            continue
        if case.startswith("conv "):
            taps, gated = n["kh"] * n["kw"], " gated " in case
            # A gate row for each pixel of a tile takes what A takes.
            blocks = (blocks[0] * (1 + (gated and n["images"] == 0)), *blocks[1:])
            shape = conv.Shape(1000, n["c"], n["out"], taps, gated)
            estimate = conv.shared_bytes(
                shape, conv.Choice(*blocks, n["split_k"], *end, n["block_r"]), "bfloat16"
            )
        elif case.startswith("fused"):
            taps = n["kh"] * n["kw"]
            wide = fused_mbconv.Shape(1000, n["c"], n["e"], n["out"], taps)
            estimate = fused_mbconv.shared_bytes(
                wide, fused_mbconv.Choice(*blocks, *end, n["block_f"]), "bfloat16"
            )
        else:
            pooled = conv_act_pool.Shape(1, 100, n["c"], n["out"])
            choice = conv_act_pool.Choice(*blocks, 1, *end)
            estimate = conv_act_pool.shared_bytes(pooled, choice, "bfloat16")
        assert found["shared_bytes"] <= estimate, case
        seen += 1
    assert seen > 50


def test_a_sample_compiles_to_what_the_table_says() -> None:
    """One kernel of each kind, for Hopper, and all that is chosen today is in the table."""
    architecture, target = "sm_90a", KNOWN["sm_90a"]
    table = by_kernel(architecture)
    needed = static.instances(architecture, ["efficientnetv2_s"])
    assert {static.case_of(instance) for instance in needed} <= set(table), REMAKE
    gated = [i for i in needed if dict(i.constants).get("GATED")]
    sample = list({i.kernel: i for i in needed}.values()) + gated[:1]
    compile_all(sample, target, processes=2)
    same_compiler = KERNELS[0].triton == version_of("triton")
    for instance in sample:
        case = static.case_of(instance)
        found = static.resources(compile_for(instance, target), architecture)
        assert found.spill_bytes == 0, case
        assert (found.tensor_core_instructions > 0) == on_newest_cores(case, architecture), case
        if same_compiler:
            assert vars(found) == table[case], case
