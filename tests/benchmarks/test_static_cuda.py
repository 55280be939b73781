"""The static table of the CUDA kernels: complete, without spills, with the tensor cores in use, and
what this checkout builds."""

from __future__ import annotations

import pytest

from benchmarks import results
from benchmarks.static import cuda
from effv2_kernels import _native

PATH = results.FOLDER / "static" / "cuda.csv"
ROWS = results.read(PATH)
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
TABLE = {(row.gpu, row.case, row.metric): row.value for row in ROWS}
CASES = [instance.case for instance in cuda.instances()]
ROW_LOOPS = [instance.case for instance in cuda.instances() if instance.outputs_of_a_turn]
# Of 16-bit data; 27 an output keep up with the memory of an H200 at 3x3 and stride 1.
MOST_INSTRUCTIONS = {"3, 1": 20, "3, 2": 28, "5, 1": 45, "5, 2": 55}
BUILD = _native.build_info()


def values(metric: str, family: str = "") -> dict[str, float]:
    """The metric of every instance of a family, by architecture and case."""
    return {
        f"{architecture} {case}": float(TABLE[architecture, case, metric])
        for architecture in ARCHITECTURES
        for case in CASES
        if case.startswith(family)
    }


def test_every_instance_of_the_models_is_there() -> None:
    expected = {(a, c, m) for a in ARCHITECTURES for c in CASES for m in cuda.UNITS}
    expected |= {(a, c, cuda.OUTPUT_INSTRUCTIONS) for a in ARCHITECTURES for c in ROW_LOOPS}
    assert set(TABLE) == expected | {("none", "toolkit", "cuda")}
    assert {row.impl for row in ROWS} == {"effv2"} and {row.driver for row in ROWS} == {"none"}


def test_nothing_spills() -> None:
    assert set(values("spill_bytes").values()) == {0.0}


def test_expand_depthwise_uses_tensor_cores() -> None:
    # A loop's body has two tiles of 16 pixels times 8 or 4 tiles of 8 channels.
    for name, count in values("mma_instructions", "expand_depthwise_kernel").items():
        assert count >= (16 if name.endswith("64>") else 8), name


def test_maps_are_read_by_16_bytes() -> None:
    for family in ("depthwise_kernel", "expand_depthwise_kernel"):
        assert set(values("load16_share", family).values()) == {1.0}
    for family in ("stem_kernel", "squeeze_excite_gate_kernel"):
        # Some only: the rest is what is not aligned, and biases. The gate reads 8 bytes where it
        # takes 8 images at once, for want of registers.
        found = values("load16_share", family)
        assert min(share for name, share in found.items() if " 8, " not in name) > 0, family


def test_two_blocks_of_the_large_kernels_share_a_multiprocessor() -> None:
    """Their design rests on it."""
    for family in ("depthwise_kernel", "expand_depthwise_kernel", "stem_kernel"):
        assert min(values("blocks_per_sm", family).values()) >= 2, family


def test_depthwise_is_lean() -> None:
    """Instructions an output of the row loop on Hopper, for which they were counted and written;
    others may compile it to a tenth more."""
    for architecture in ARCHITECTURES:
        for dtype in ("float16", "bfloat16"):
            for window, most in MOST_INSTRUCTIONS.items():
                width = 4 if window[0] == "3" else 2
                case = f"depthwise_kernel<{dtype}, {window}, {width}, silu>"
                found = float(TABLE[architecture, case, cuda.OUTPUT_INSTRUCTIONS])
                assert found <= (most if architecture == "sm_90a" else 1.1 * most), case
                assert found > int(window[0]) ** 2


@pytest.mark.skipif(not BUILD, reason="nothing native was built")
def test_it_is_what_this_checkout_builds() -> None:
    """Registers, spills and static shared memory as ptxas printed them in this build. Another
    toolkit than the table's may count other registers, but may not spill either."""
    usage = {(k["architecture"], cuda.signature(k["name"])): k for k in BUILD["kernels"]}
    same_toolkit = BUILD["cuda"] == TABLE["none", "toolkit", "cuda"]
    for architecture in {architecture for architecture, _ in usage} & set(ARCHITECTURES):
        for instance in cuda.instances():
            kernel = usage[architecture, (instance.family, instance.arguments)]
            assert kernel["spill_store_bytes"] == kernel["spill_load_bytes"] == 0, instance
            if same_toolkit:
                registers = TABLE[architecture, instance.case, "registers"]
                assert kernel["registers"] == int(registers), (architecture, instance)


def test_occupancy() -> None:
    """Against what the occupancy calculator says of some kernels."""
    assert cuda.blocks_per_sm(32, 0, 128, "sm_80") == 16  # by threads
    assert cuda.blocks_per_sm(201, 32768, 128, "sm_90a") == 2  # by registers
    assert cuda.blocks_per_sm(64, 100 * 1024, 128, "sm_90a") == 2  # by shared memory
    assert cuda.blocks_per_sm(64, 100 * 1024, 128, "sm_80") == 1


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("LDG.E.128 R4, x\n LDG.E.64 R8, x\n HMMA.16816.F32 R0, R1", cuda.Code(2, 1, 1)),
        ("LDGSTS.E.BYPASS.128 [R1], x\n LDG.E.U16 R4, x\n STG.E.128 x", cuda.Code(1, 1, 0)),
        ("IMAD R1, R2, R3", cuda.Code(0, 0, 0)),
    ],
)
def test_counts_of_the_machine_code(text: str, code: cuda.Code) -> None:
    assert cuda.count(text) == code


def test_the_innermost_loop_with_the_multiplications_is_counted() -> None:
    lines = ["MOV R0, R1", "FFMA R0", "FFMA.FTZ R1", "@P0 BRA 0x0010", "FADD R2", "BRA 0x0000"]
    text = "\n".join(f"/*{16 * i:04x}*/  {line} ;" for i, line in enumerate(lines))
    assert cuda.loop(text) == 3
    assert cuda.loop(text.replace("FFMA", "FADD")) == 0


def test_signature_of_a_kernel_name() -> None:
    name = "void effv2::depthwise::depthwise_kernel<__half, 3, 1, 8, true>(effv2::DepthwiseParams)"
    assert cuda.signature(name) == ("depthwise_kernel", ("__half", "3", "1", "8", "true"))
    hidden = next(name for name, short in cuda.HIDDEN.items() if short == "cluster")
    space = "effv2::squeeze_excite"
    name = f"void {space}::squeeze_excite_gate_kernel<float, 1, {hidden}>({space}::KernelParams)"
    assert cuda.signature(name)[1] == ("float", "1", hidden)
