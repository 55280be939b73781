"""The microbenchmarks: shapes, checks and rows of every operator."""

from __future__ import annotations

import pytest
import torch

import python_ref
from benchmarks.ops import plain
from benchmarks.ops.cases import SUITES, Case, of_blocks, of_text
from benchmarks.sized_blocks import blocks_of
from benchmarks.suites import operators
from effv2_kernels import ops
from effv2_kernels.engines import triton as triton_ops
from effv2_kernels.engines.triton import _compile
from effv2_kernels.launch.targets import KNOWN
from effv2_kernels.patching.warmup import recorded

from .conftest import Run, keys

SHAPES = {
    "depthwise": "c20,h9,w7,k5,s2",
    "expand_depthwise": "c6,h9,k3,s1,e20",
    "stem": "c3,h17,o8,k3,s2",
    "gate": "c24,r6",
    "conv": "c7,h9,o7,k3,s1",
    "fused_mbconv": "c6,h9,e20,o6,k3,s1",
    "project": "c24,h5,o10,r4",
    "head": "c12,h5,o30",
}


@pytest.mark.parametrize("suite", SUITES)
def test_every_operator_is_checked_and_timed(suite: str, run: Run) -> None:
    batch = ("--batch", "1", "5", "--dtype", "float32", "--rounds", "2", "--device", "cpu")
    status, rows = run(suite, "--shape", SHAPES[suite], *batch)
    assert status == 0
    assert {r.batch for r in rows if r.suite == suite} == {"1", "5"}
    found = keys(rows, "effv2")
    assert {m for _, m in found} == {
        "latency_us",
        "part_of_floor",
        "bandwidth",
        "arithmetic",
        "speedup_vs_eager_nhwc",
    }
    assert all(float(r.value) > 0 for r in rows)


@pytest.mark.parametrize("batch", [1, 3, 7])
@pytest.mark.parametrize("wrong_image", [0, -1])
def test_an_operator_with_a_wrong_output_is_not_timed(
    batch: int,
    wrong_image: int,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Planted in one element of the first or of the last image."""
    honest = operators.implementation

    def planted(name: str, case: Case):
        function = honest(name, case)

        def off(*arguments):
            y, pooled = function(*arguments)
            y = y.clone()
            y[wrong_image, 3, 2, 1] += 0.5
            return y, pooled

        return off if name == "effv2" else function

    monkeypatch.setattr(operators, "implementation", planted)
    options = ("--batch", str(batch), "--rounds", "1", "--device", "cpu")
    status, rows = run("depthwise", "--shape", SHAPES["depthwise"], *options)
    assert status == 1
    assert "not timed" in capsys.readouterr().err
    assert not keys(rows, "effv2")
    assert keys(rows, "eager_nhwc"), "the others are measured all the same"


def test_compiled_expressions_are_timed(run: Run) -> None:
    options = ("--impl", "eager_nhwc", "compile_default", "--rounds", "1", "--device", "cpu")
    status, rows = run("head", "--shape", SHAPES["head"], *options)
    assert status == 0
    assert ("compile_default", "speedup_vs_eager_nhwc") in keys(rows)


@pytest.mark.parametrize("suite", SUITES)
def test_the_plain_expression_is_the_operator(suite: str) -> None:
    """In float64: shapes of a network with uneven sizes."""
    cases = of_blocks(suite, blocks_of(python_ref.create("b0"), 57))
    assert len(cases) == len({case.name for case in cases}) >= 1
    random = torch.Generator().manual_seed(0)
    for case in cases[:3]:
        arguments = case.draw(2, torch.float64, torch.device("cpu"), random)
        found = getattr(torch.ops.effv2, case.op)(*arguments)
        want = getattr(plain, case.op)(*arguments)
        torch.testing.assert_close(found, want)


def test_the_shapes_of_s_m_and_l() -> None:
    blocks = [b for n in "sml" for b in blocks_of(python_ref.create(n), 384)]
    names = {suite: {c.name for c in of_blocks(suite, blocks)} for suite in SUITES}
    assert "512x24x24, k3 s1" in names["depthwise"]
    assert "64x48x48 to 256, k3 s2" not in names["fused_mbconv"]  # stage 4 is MBConv
    assert "48x96x96 to 192, k3 s1 to 48 + residual" in names["fused_mbconv"]
    assert "3x384x384 to 24, k3 s2" in names["stem"]
    assert "256x12x12 to 1280, k1 s1" in names["head"]
    assert "1536 to 64" in names["gate"]


def test_bytes_and_flops_of_a_case() -> None:
    """conv 7 -> 7, 3x3 at 9x9 with a residual, three images of 2 bytes an element."""
    work = of_text("conv", "c7,h9,o7,k3,s1").kernel(3, 2)
    plane = 7 * 9 * 9
    assert work.bytes == 2 * (3 * 3 * plane + 7 * 7 * 9)
    assert work.tensor == 3 * 2 * plane * 7 * 9
    assert work.sfu == 3 * 2 * plane


@pytest.mark.parametrize("text", ["", "c8;h4", "8x8", "c8,h4 ", "C8"])
def test_a_shape_that_is_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match="shape"):
        of_text("conv", text)


@pytest.mark.skipif(triton_ops.missing() != "", reason="no Triton")
@pytest.mark.parametrize("suite", SUITES)
def test_what_is_compiled_ahead_is_what_is_launched(
    suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From outlines of the arguments, as from the arguments that are then drawn."""
    target, ahead = KNOWN["sm_90a"], []
    monkeypatch.setattr(_compile, "compile_all", lambda found, *rest, **how: ahead.extend(found))
    cases = [of_text(suite, SHAPES[suite].replace("c6", "c48"))]
    operators.compile_ahead(cases, (1, 5), "bfloat16", target)
    random = torch.Generator().manual_seed(0)

    def run() -> None:
        for batch in (1, 5):
            arguments = cases[0].draw(batch, torch.bfloat16, torch.device("cpu"), random)
            operators.implementation("effv2", cases[0])(*arguments)

    assert ahead == recorded(run, target)
    # The uneven channels of this expand_depthwise are nothing for the native kernel.
    assert bool(ahead) == (cases[0].op not in ops.NATIVE_OPS or suite == "expand_depthwise")
