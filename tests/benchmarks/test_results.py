from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import readme, results
from effv2_kernels.cli.timing import quantiles


@pytest.fixture
def row() -> results.Row:
    return results.row(
        results.environment(torch.device("cpu")),
        quantiles([1.0, 2.0, 3.0]),
        suite="cpu",
        case="timm efficientnetv2_s",
        impl="effv2",
        metric="latency_ms",
        unit="ms",
        batch=1,
        resolution=224,
        dtype="float32",
    )


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


def test_a_row_says_where_it_was_measured(row: results.Row) -> None:
    assert row.gpu.startswith("CPU ") and row.torch == torch.__version__
    assert row.driver == "none"
    assert (row.value, row.samples) == ("2", "3")


def test_a_file_with_other_columns_is_refused(tmp_path: Path, row: results.Row) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns"):
        results.upsert(path, [row])
    assert path.read_text() == "a,b\n1,2\n"


def test_readme_equals_the_csv() -> None:
    text = readme.README.read_text()
    assert readme.updated(text, results.read(readme.SOURCE)) == text, (
        "run `python -m benchmarks readme`"
    )


def test_readme_shows_every_case_and_what_is_missing(row: results.Row) -> None:
    shown = readme.table([row, replace(row, batch="8", value="12.34")])
    lines = [line for line in shown.splitlines() if "efficientnetv2_s" in line]
    assert len(lines) == 2
    assert "| 2.0 ms | not measured | not measured |" in lines[0]
    assert "12.3 ms" in lines[1]
    assert "GPU" in shown
    with pytest.raises(ValueError, match="README"):
        readme.updated("no markers", [row])
