from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import pages, readme, results
from effv2_kernels.measuring.timing import quantiles


@pytest.fixture
def row() -> results.Row:
    make = results.maker(
        torch.device("cpu"),
        suite="cpu",
        case="timm efficientnetv2_s",
        batch=1,
        resolution=224,
        dtype="float32",
    )
    return make("effv2", "latency_ms", "ms", quantiles([1.0, 2.0, 3.0]))


def test_columns_are_those_of_the_contract() -> None:
    assert ",".join(results.COLUMNS) == (
        "suite,case,impl,metric,value,unit,batch,resolution,dtype,gpu,"
        "torch,triton,driver,commit,date,samples,p20,p80"
    )


def test_a_new_measurement_replaces_the_row_of_its_key(tmp_path: Path, row: results.Row) -> None:
    path = tmp_path / "folder" / "x.csv"
    other = replace(row, batch="8")
    results.upsert(path, [row, other])
    assert results.read(path) == [row, other]
    newer = replace(row, value="7", commit="abc", torch="9.9")
    added = replace(row, impl="eager_nhwc")
    results.upsert(path, [newer, added])
    assert results.read(path) == [newer, other, added]
    assert results.read_all(tmp_path) == [newer, other, added]


def test_a_row_says_where_it_was_measured(row: results.Row) -> None:
    assert row.gpu.startswith("CPU ") and row.torch == torch.__version__
    assert row.driver == "none"
    assert (row.value, row.samples) == ("2", "3")
    make = results.static_maker(suite="roofline", case="x", batch=1, resolution=1)
    assert make("eager", "moved", "MB", 2.5).gpu == results.NO_DEVICE


def test_a_file_with_other_columns_is_refused(tmp_path: Path, row: results.Row) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns"):
        results.upsert(path, [row])
    assert path.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("path", readme.PAGES, ids=lambda path: path.parent.name)
def test_pages_equal_the_csv_files(path: Path) -> None:
    text = path.read_text()
    rows = results.read_all()
    assert readme.updated(text, rows, readme.PAGES[path]) == text, "run `make readme`"


def test_committed_rows_are_valid() -> None:
    rows = results.read_all()
    assert rows
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        if row.p20 or row.suite not in ("cuda", "triton"):  # whose numbers have no spread
            assert float(row.p20) <= float(row.value) <= float(row.p80), row


def test_the_gains_show_every_case_and_what_is_missing(row: results.Row) -> None:
    shown = pages.gains([row, replace(row, batch="8", value="12.34")])
    lines = [line for line in shown.splitlines() if "efficientnetv2_s" in line]
    assert len(lines) == 2
    assert "| 2.0 ms | not measured | not measured |" in lines[0]
    assert "12.3 ms" in lines[1]
    assert "| GPU | any |" in shown
    on_gpu = replace(row, gpu="NVIDIA H200", suite="models", value="3.5")
    shown = pages.gains([row, on_gpu])
    assert "| GPU | any |" not in shown and "| NVIDIA H200 |" in shown


def test_beside_a_gain_is_the_fastest_mode_of_the_compiler(row: results.Row) -> None:
    def of(impl: str, metric: str, value: str) -> results.Row:
        return replace(row, impl=impl, metric=metric, value=value, p20=value, p80=value)

    rows = [
        of("effv2", "latency_ms", "1"),
        of("effv2", "speedup_vs_compile_default", "7"),
        of("effv2", "speedup_vs_compile_reduce_overhead", "2"),
        of("compile_default", "latency_ms", "7"),
        of("compile_reduce_overhead", "latency_ms", "2"),
    ]
    line = next(line for line in pages.gains(rows).splitlines() if "efficientnetv2_s" in line)
    assert "| 2.0 ms (reduce-overhead) | 1.0 ms |" in line and "**2.00x**" in line
    line = next(line for line in pages.gains(rows[:4]).splitlines() if "efficientnetv2_s" in line)
    assert "| 7.0 ms | 1.0 ms |" in line and "**7.00x**" in line


def test_a_gpu_fills_the_pages(row: results.Row) -> None:
    gpu = replace(row, gpu="NVIDIA H200", impl="effv2")
    operator = replace(gpu, suite="depthwise", metric="part_of_floor", value="0.9")
    shown = pages.operators([operator, replace(operator, case="y", value="0.4")])
    assert "| NVIDIA H200 | depthwise | 1 | float32 | 2 | 0.60 | not measured |" in shown
    assert "not measured" in pages.operators([row])
    block = replace(gpu, suite="roofline", case="python_ref s: stem (1 x ConvBNAct)")
    rows = [
        replace(block, metric="block_us", value="20"),
        replace(block, metric="floor_us", value="10"),
        replace(block, metric="part_of_floor", value="0.5"),
    ]
    shown = pages.blocks(rows)
    line = "| stem (1 x ConvBNAct) | not measured | not measured | 20 | 10 | 50.0 % |"
    assert line in shown and "On a GPU" not in shown


def test_a_page_without_its_markers_is_refused(row: results.Row) -> None:
    with pytest.raises(ValueError, match="the page needs"):
        readme.updated("no markers", [row], {"measured gains": pages.gains})


def test_a_tree_without_git_is_told_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a copy on a GPU machine is: the package alone in a folder that no repository holds."""
    root = Path(results.__file__).parents[1]
    for name in ("benchmarks", "effv2_kernels"):
        built = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(root / name, tmp_path / name, ignore=built)
    code = "from benchmarks import results; print(results._commit())"
    command = [sys.executable, "-c", code]
    environment = {k: v for k, v in os.environ.items() if k != "EFFV2_COMMIT"}
    environment["GIT_CEILING_DIRECTORIES"] = str(tmp_path)

    def commit(**told: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment | told, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert commit() == "unknown"
    assert commit(EFFV2_COMMIT="4ae4ff3e7955") == "4ae4ff3e7955"
