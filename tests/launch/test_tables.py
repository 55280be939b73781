"""Tables of tuned launches: read, checked, written, and carried over to shapes near by."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from effv2_kernels.launch import off_tables, tables, targets
from effv2_kernels.launch.triton import conv, fused_mbconv, selection

TARGET = dataclasses.replace(targets.KNOWN["sm_90a"], name="NVIDIA Test GPU (2)")
SHAPE = conv.Shape(18432, 960, 160, 1, True, 0)
CHOICE = conv.Choice(64, 32, 32, 1, 4, 4)
ENTRY = tables.Entry("conv", "bfloat16", SHAPE, CHOICE, 12.5)
OTHER = tables.Entry(
    "fused_mbconv",
    "bfloat16",
    fused_mbconv.Shape(2304, 64, 256, 64, 9),
    fused_mbconv.Choice(64, 64, 64, 4, 3),
    20.0,
)


def forget() -> None:
    tables._of_gpu.cache_clear()
    selection.known.cache_clear()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the table of TARGET is looked for."""
    monkeypatch.setenv("EFFV2_TABLES", str(tmp_path))
    forget()
    yield tables.path_of(TARGET.name, tmp_path)
    forget()


def test_what_is_written_is_read(path: Path) -> None:
    assert path.name == "nvidia_test_gpu_2.json"
    tables.write(path, [ENTRY, OTHER])
    assert tables.read(path) == [ENTRY, OTHER]
    assert len(path.read_text().splitlines()) == 4, "one entry a line, and two brackets"
    faster = dataclasses.replace(ENTRY, microseconds=10.0)
    tables.write(path, [faster])
    assert tables.read(path) == [faster, OTHER]


def test_a_tuned_launch_goes_before_the_modelled_one(path: Path) -> None:
    modelled = conv.modelled(SHAPE, "bfloat16", TARGET)
    assert selection.choose("conv", SHAPE, "bfloat16", TARGET) == modelled != CHOICE
    tables.write(path, [ENTRY, OTHER])
    forget()
    assert selection.choose("conv", SHAPE, "bfloat16", TARGET) == CHOICE
    assert selection.choose("conv", SHAPE, "float16", TARGET) != CHOICE
    other_gpu = targets.KNOWN["sm_80"]
    modelled = conv.modelled(SHAPE, "bfloat16", other_gpu)
    assert selection.choose("conv", SHAPE, "bfloat16", other_gpu) == modelled


def test_the_nearest_number_of_rows_counts_and_nothing_else(path: Path) -> None:
    near = dataclasses.replace(SHAPE, rows=40000)
    nearer = dataclasses.replace(ENTRY, shape=near, choice=conv.Choice(128, 64, 64, 1, 4, 3))
    tables.write(path, [ENTRY, nearer])
    forget()

    def chosen(**changes: int) -> conv.Choice:
        shape = dataclasses.replace(SHAPE, **changes)
        return selection.choose("conv", shape, "bfloat16", TARGET)

    assert chosen(rows=20000) == CHOICE
    assert chosen(rows=39000) == nearer.choice
    assert chosen(rows=40000 * 4) == nearer.choice
    for changes in ({"rows": 40000 * 5}, {"channels": 961}, {"out_channels": 161}, {"taps": 9}):
        shape = dataclasses.replace(SHAPE, **changes)
        assert chosen(**changes) == conv.modelled(shape, "bfloat16", TARGET)


def test_a_launch_that_does_not_fit_is_not_used(path: Path) -> None:
    large = dataclasses.replace(ENTRY, choice=conv.Choice(256, 256, 128, 1, 8, 4))
    tables.write(path, [large])
    forget()
    modelled = conv.modelled(SHAPE, "bfloat16", TARGET)
    assert selection.choose("conv", SHAPE, "bfloat16", TARGET) == modelled


def good() -> dict:
    return {
        "kernel": "conv",
        "kind": "bfloat16",
        "shape": dataclasses.asdict(SHAPE),
        "choice": dataclasses.asdict(CHOICE),
        "microseconds": 12.5,
    }


def changed(part: str, **values: object) -> dict:
    found = good()
    found[part] = found[part] | values
    return found


BAD = {
    "kernel must be one of": good() | {"kernel": "gemm"},
    "kind must be one of": good() | {"kind": "int8"},
    "exactly the keys kernel": {k: v for k, v in good().items() if k != "shape"},
    "shape has exactly the keys rows": changed("shape", depth=3),
    "shape: rows must be a whole number": changed("shape", rows="many"),
    "shape: gated must be true or false": changed("shape", gated=1),
    "choice has exactly the keys block_m": good() | {"choice": {"block_m": 64}},
    "block_n must be a power of two, got 48": changed("choice", block_n=48),
    "block_m must be 16 to 512, got 8": changed("choice", block_m=8),
    "warps must be 1 to 16, got 32": changed("choice", warps=32),
    "stages must be 1 to 8, got 0": changed("choice", stages=0),
    "resident must be 0 to 16, got 17": changed("choice", resident=17),
    "microseconds must be a positive number": good() | {"microseconds": -1},
    "an entry has exactly": [1, 2],
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_entry_names_its_file_and_line(message: str, path: Path) -> None:
    lines = [json.dumps(good()), json.dumps(good()), json.dumps(BAD[message])]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    with pytest.raises(tables.TableError, match=message) as error:
        tables.nearest(TARGET.name, "conv", SHAPE, "bfloat16")
    assert f"{path}, line 4: " in str(error.value)


def test_what_has_a_default_may_be_left_out(path: Path) -> None:
    """As it is in a table that was tuned before there was such a choice."""
    entry = good()
    del entry["choice"]["resident"]
    path.write_text(f"[\n{json.dumps(entry)}\n]\n")
    assert tables.nearest(TARGET.name, "conv", SHAPE, "bfloat16") == CHOICE


@pytest.mark.parametrize(
    ("text", "line", "words"), [("{}", 1, "array"), ('[\n{"a": 1},\n{"b" 2}]', 3, "not JSON")]
)
def test_a_file_that_is_no_table(text: str, line: int, words: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(tables.TableError, match=f"line {line}: .*{words}"):
        tables.read(path)


def test_the_tables_in_the_package_are_valid() -> None:
    for found in tables.FOLDER.glob("*.json"):
        off = found.name.endswith(off_tables.SUFFIX)
        entries = off_tables.read(found) if off else tables.read(found)
        assert len({entry.key for entry in entries}) == len(entries)
