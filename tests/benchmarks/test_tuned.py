"""What ``tune --log`` leaves becomes rows of the operators' shapes, and a table of them all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import pages, results
from benchmarks.__main__ import main
from effv2_kernels.engines import triton as triton_ops

if triton_ops.missing():
    pytest.skip("Triton is not installed", allow_module_level=True)

CASE = "960x24x24 to 160, k1 s1 + residual"
SHAPE = {
    "rows": 128 * 24 * 24,
    "channels": 960,
    "out_channels": 160,
    "taps": 1,
    "gated": True,
    "special": 0,
}
CHOICE = {
    "block_m": 64,
    "block_n": 128,
    "block_k": 64,
    "split_k": 1,
    "warps": 4,
    "stages": 3,
    "block_r": 32,
}


def entry(shape: dict, *times: float) -> str:
    launches = [{**CHOICE, "stages": 2 + i, "microseconds": t} for i, t in enumerate(times)]
    return json.dumps({"kernel": "conv", "kind": "bfloat16", "shape": shape, "times": launches})


def test_rows_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "tuning.jsonl"
    other = {**SHAPE, "channels": 999}
    log.write_text(entry(SHAPE, 94.0, 65.5, 70.0) + "\n" + entry(other, 1.0) + "\n")
    assert main(["tuned", str(log), "--device", "cpu"]) == 0
    rows = results.read(tmp_path / "results.csv")
    assert {(r.suite, r.case, r.impl, r.batch, r.value) for r in rows} == {
        ("tune", f"project {CASE}", "effv2", "128", "65.5"),
        ("tune", f"project {CASE}", "effv2_untuned", "128", "94"),
    }


def test_a_log_of_other_shapes_is_no_success(tmp_path: Path) -> None:
    log = tmp_path / "tuning.jsonl"
    log.write_text(entry({**SHAPE, "channels": 999}, 1.0) + "\n")
    assert main(["tuned", str(log), "--device", "cpu"]) == 1


def planted(suite: str, impl: str, values: dict[str, float], commit: str) -> list[results.Row]:
    case = CASE if suite != "tune" else f"project {CASE}"
    make = results.maker(
        torch.device("cpu"), suite=suite, case=case, batch=128, resolution=0, dtype="bfloat16"
    )
    made = [make(impl, name, "", results.quantiles([v])) for name, v in values.items()]
    return [results.replace(row, gpu="NVIDIA Test", commit=commit) for row in made]


def test_the_table_of_shapes_shows_what_is_latest() -> None:
    rows = planted("project", "eager_nhwc", {"latency_us": 300.0}, "first")
    rows += planted("project", "effv2", {"latency_us": 200.0, "part_of_floor": 0.2}, "first")
    line = pages.shapes(rows).splitlines()[-1]
    assert "| 300.0 | 200.0 | 1.50x | 20 % | in turn | first |" in line
    rows += planted("tune", "effv2", {"latency_us": 50.0}, "second")
    line = pages.shapes(rows).splitlines()[-1]
    assert "| 300.0 | 50.0 | 6.00x | 80 % | apart | second |" in line
    assert "not measured" in pages.shapes([])


def test_the_table_of_what_is_right_adds_up_dtypes() -> None:
    rows = []
    for dtype, wrong in (("bfloat16", 0.0), ("float16", 2.0)):
        make = results.maker(
            torch.device("cpu"),
            suite="correctness",
            case="stem",
            batch=0,
            resolution=0,
            dtype=dtype,
        )
        values = {"outputs": 10.0, "wrong_outputs": wrong, "worst_error_over_pytorch": wrong + 0.5}
        rows += [make("cuda", name, "", results.quantiles([v])) for name, v in values.items()]
    line = pages.correctness(rows).splitlines()[-1]
    assert f"| stem | cuda | bfloat16, float16 | 20 | 2 | 2.50 | {rows[0].commit} |" in line
    assert "not measured" in pages.correctness([])
