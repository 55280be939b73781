"""``python -m benchmarks verdict DIR --write``: what planted measurements switch off."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import results, switching_off
from benchmarks.__main__ import main
from benchmarks.results import Row
from benchmarks.suites import operators
from effv2_kernels.launch import off_tables
from effv2_kernels.launch.off_tables import Entry

GPU = "NVIDIA Test GPU (2)"
SHAPE = (
    *(("channels", 256), ("height", 48), ("width", 48), ("kernel", 3), ("stride", 2)),
    *(("least_batch", 32), ("most_batch", 512)),
)
SLOW = Entry("depthwise_bias_act", "any", "bfloat16", SHAPE, "slower: 0.70x", "abc123")
WRONG = Entry("stem", "cuda", "float32", (), "wrong: 3 of 13 outputs", "abc123")


def row(suite: str, case: str, metric: str, value: float, **columns: str) -> Row:
    given = {"suite": suite, "case": case, "metric": metric, "value": f"{value:g}"}
    rest = {"p20": f"{0.98 * value:g}", "p80": f"{1.02 * value:g}", "commit": "abc123"}
    known = {"impl": "effv2", "batch": "128", "dtype": "bfloat16", "gpu": GPU}
    empty = dict.fromkeys(results.COLUMNS, "")
    return Row(**{**empty, **given, **rest, **known, **columns})


def speed(case: str, eager: float, compiled: float, **columns: str) -> list[Row]:
    suite = columns.pop("suite", "depthwise")
    return [
        row(suite, case, "speedup_vs_eager_nhwc", eager, **columns),
        row(suite, case, "speedup_vs_compile_default", compiled, **columns),
    ]


def checks(op: str, engine: str, wrong: int, **columns: str) -> list[Row]:
    where = {"impl": engine, "batch": "0", "dtype": "float32", **columns}
    outputs = row("correctness", op, "outputs", 13, **where)
    return [outputs, row("correctness", op, "wrong_outputs", wrong, **where)]


BROKEN = {
    ("stem", "cuda"): "its figures are known",
    ("squeeze_excite_gate", "cuda"): "RuntimeError: an illegal memory access " + "x" * 200,
    ("conv_act_pool", "triton"): "PTXASError: refused",
}
PLANTED = [
    *speed("256x48x48, k3 s2", 0.7, 0.6),
    *speed("256x48x48, k3 s2", 1.5, 1.1, batch="1"),
    *speed("960x24x24, k3 s1", 0.7, 1.2),  # faster than one of the two
    *speed("1536x12x12, k3 s1", 0.94, 0.9),  # within its spread of equal
    *speed("256x48x48, k3 s2", 0.7, 0.6, impl="eager_nchw"),
    *speed("256x48x48, k3 s2", 0.7, 0.6, gpu="CPU AMD EPYC, AVX512 (2 threads)"),
    *speed("timm efficientnetv2_s", 0.7, 0.6, suite="models"),
    *checks("stem", "cuda", 3),
    *checks("stem", "triton", 0),
    *checks("network", "cuda", 5),  # names no op
]


def test_what_is_slow_or_wrong_and_nothing_else() -> None:
    assert switching_off.proposed(PLANTED) == {GPU: ([WRONG, SLOW], [])}


def test_a_shape_of_no_network_is_named() -> None:
    found = switching_off.proposed(speed("7x9x9, k3 s1", 0.5, 0.5))
    assert found == {GPU: ([], ["depthwise 7x9x9, k3 s1, batch 128, bfloat16"])}


@pytest.mark.parametrize(
    ("batch", "measured", "bounds"),
    [
        (128, (1, 128), (32, 512)),
        (1, (1, 128), (1, 4)),
        (8, (1, 8, 16), (3, 11)),
        (16, (1, 8, 16), (12, 64)),
    ],
)
def test_the_batches_that_a_figure_holds_for(
    batch: int, measured: tuple[int, ...], bounds: tuple[int, int]
) -> None:
    assert tuple(value for _, value in switching_off._bounds(batch, measured)) == bounds


@pytest.mark.parametrize("suite", sorted(switching_off.OPERATORS))
def test_every_case_of_the_networks_has_a_shape_of_its_own(suite: str, tmp_path: Path) -> None:
    cases = operators.in_networks(suite).values()
    shapes = [tuple(switching_off._shape(case)) for case in cases]
    assert shapes and len(set(shapes)) == len(shapes)
    ops = [case.op for case in cases]
    entries = [dataclasses.replace(SLOW, op=o, shape=s) for o, s in zip(ops, shapes, strict=True)]
    path = off_tables.path_of(GPU, tmp_path)
    off_tables.write(path, entries)
    assert off_tables.read(path) == entries


def test_the_command_writes_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = {(r.suite, r.case, r.batch, r.impl, r.gpu): r for r in PLANTED if r.impl == "effv2"}
    times = [dataclasses.replace(r, metric="latency_us", value="90") for r in ours.values()]
    results.upsert(tmp_path / "results.csv", [*PLANTED, *times])
    assert main(["verdict", str(tmp_path)]) == 0
    assert "entries" not in capsys.readouterr().out and not list(tmp_path.glob("*.json"))
    assert main(["verdict", str(tmp_path), "--write", str(tmp_path / "tables")]) == 0
    path = off_tables.path_of(GPU, tmp_path / "tables")
    shown = capsys.readouterr().out
    assert f"2 entries into {path}" in shown
    assert f"  stem: {WRONG.text(GPU)}" in shown and f": {SLOW.text(GPU)}" in shown
    assert off_tables.read(path) == [WRONG, SLOW]


def test_a_run_on_a_cpu_switches_nothing_off(tmp_path: Path) -> None:
    rows = [dataclasses.replace(found, gpu="CPU AMD EPYC, AVX2 (2 threads)") for found in PLANTED]
    assert switching_off.write(rows, tmp_path) == "nothing was measured on a GPU"
    assert not list(tmp_path.iterdir())


def test_what_left_no_figures_is_switched_off_too(tmp_path: Path) -> None:
    """A kernel that faults, hangs or does not compile; whole, and in every dtype."""
    text = switching_off.write(checks("stem", "cuda", 3), tmp_path, BROKEN)
    (path,) = tmp_path.glob("*.off.json")
    stem, gate, head = off_tables.read(path)
    assert stem == WRONG
    reason = "wrong: RuntimeError: an illegal memory access"
    assert (gate.op, gate.engine, gate.dtype, gate.shape) == (
        "squeeze_excite_gate",
        "cuda",
        "any",
        (),
    )
    assert gate.reason.startswith(reason) and len(gate.reason) < 120 and gate.commit == "abc123"
    assert head == Entry(
        "conv_act_pool", "triton", "any", (), "wrong: PTXASError: refused", "abc123"
    )
    assert "3 entries into" in text


def test_of_two_gpus_it_is_not_known_which_one_broke(tmp_path: Path) -> None:
    rows = checks("stem", "cuda", 0) + checks("stem", "cuda", 0, gpu="NVIDIA Other GPU")
    switching_off.write(rows, tmp_path, BROKEN)
    assert not list(tmp_path.glob("*.off.json"))
