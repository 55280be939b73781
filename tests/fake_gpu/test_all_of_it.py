"""``make gpu`` whole, on a fake GPU with something wrong in five of its kernels."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import correctness, gpu, results, switching_off, verdict
from benchmarks.gpu.parts import BUILD, PARTS
from effv2_kernels.launch import off_tables
from tests.fake_gpu.machine import Machine

SMALL = "tests/gpu/test_small.py::test_an_op[{}-torch.bfloat16-effv2]"
#: By the test in which it happens: what, and to which kernel.
PLANTED = {
    SMALL.format("stem"): ("wrong", "stem_kernel"),
    SMALL.format("squeeze_excite_gate"): ("fault", "squeeze_excite_gate_kernel"),
    SMALL.format("depthwise_bias_act"): ("hang", "depthwise_kernel"),
}
REFUSED, SLOW = "conv_act_pool", "fused_mbconv"
LEFT_OUT = {"stem cuda", "squeeze_excite_gate cuda", "depthwise_bias_act cuda", f"{REFUSED} triton"}


@dataclass(frozen=True)
class Whole:
    status: int
    output: str
    folder: Path
    complaints: Path

    @property
    def verdict(self) -> list[str]:
        return self.output.partition(f"\n{gpu.HEADING}\n")[2].splitlines()

    def section(self, heading: str) -> list[str]:
        """The lines of the verdict below one that begins so, up to the next empty one."""
        lines = self.verdict
        first = next(n for n, line in enumerate(lines) if line.startswith(heading)) + 1
        return lines[first : lines.index("", first) if "" in lines[first:] else None]


@pytest.mark.slow
def test_the_whole(machine: Machine, tmp_path: Path) -> None:
    """One test, since pytest-xdist would run it again for each worker that has a part of it."""
    folder = tmp_path / "results"
    status, output = machine.run(
        [
            *("make", "--no-print-directory", "gpu", f"PYTHON={sys.executable}", "GPU=--small"),
            *(f"RESULTS={folder}", "MINUTES=15"),
        ],
        {
            "FAKE_GPU_TESTS": json.dumps(PLANTED),
            "FAKE_GPU_PLANTS": f"slow:{SLOW}_kernel",
            "FAKE_GPU_REFUSED": f"{REFUSED}_kernel",
            "TRITON_CACHE_DIR": str(tmp_path / "triton"),  # where nothing is yet
            "FAKE_GPU_COMPLAINTS": str(tmp_path / "complaints"),
        },
        seconds=900,
    )
    print(output)
    whole = Whole(status, output, folder, tmp_path / "complaints")
    every_step_ran(whole)
    the_verdict_is_short(whole)
    what_is_wrong_is_named_with_its_figures_and_nothing_else(whole)
    every_op_engine_and_dtype_has_its_line(whole)
    the_slow_operator_is_named(whole)
    what_failed_its_tests_is_not_measured(whole)
    few_and_small_files(whole)
    nothing_was_past_a_limit_or_forbidden_in_a_capture(whole)
    the_verdict_can_be_had_again_and_switches_off_all_five(whole)


def every_step_ran(whole: Whole) -> None:
    """And what is wrong has failed: the tests, and what cannot do without the refused kernel."""
    told = [line.split() for line in whole.output.splitlines() if line[:6] in ("ok    ", "FAILED")]
    parts = {"build": BUILD, **PARTS}
    steps = {(part, step.rstrip(":")): word for word, part, step, *_ in told if part in parts}
    assert list(steps) == [(part, step.name) for part in parts for step in parts[part]]
    failed = {name for name, word in steps.items() if word == "FAILED"}
    sanitized = {("more", tool) for tool in ("memcheck", "racecheck", "initcheck")}
    assert failed == {("check", "tests"), ("more", "tune"), *sanitized}
    assert whole.status == 2  # make's


def the_verdict_is_short(whole: Whole) -> None:
    text = "\n".join(whole.verdict)
    assert 1000 < len(text) < 6000
    assert len(whole.output) < 11000  # of which 12,000 characters come back


def what_is_wrong_is_named_with_its_figures_and_nothing_else(whole: Whole) -> None:
    lines = [line for line in whole.verdict if line.startswith("FAILED ")]
    found = [re.fullmatch(r"FAILED (.+?)(?: and \d+ more)?: (.*)", line).groups() for line in lines]
    why = dict(found)
    assert len(why) == len(lines)
    wrong, fault, hang = (why.pop(test.removeprefix("tests/gpu/")) for test in PLANTED)
    assert wrong.startswith("error 1.0e+00, PyTorch's 1.0e-03 (x 2x3x5x6, weight 24x3x3x3")
    assert "illegal memory access" in fault
    assert "crashed while running" in hang
    assert why and all("PTXAS error" in words or REFUSED in words for words in why.values())
    records = correctness.read(whole.folder / "checks.jsonl")
    assert {record["outcome"] for record in records} == {"passed", "failed"}  # none uncollected
    failed = [record["message"] for record in records if record["outcome"] == "failed"]
    refused = [message for message in failed if REFUSED in message]
    assert len(failed) == len(refused) + len(PLANTED)


def every_op_engine_and_dtype_has_its_line(whole: Whole) -> None:
    records = correctness.read(whole.folder / "checks.jsonl")
    assert len(correctness.groups(records)) > 25
    shown = {tuple(line.split()[:3]): line.split()[3:] for line in whole.section("op   ")}
    assert shown["stem", "cuda", "bfloat16"][1:] == ["1", "1e+03"]
    assert shown["expand_depthwise", "cuda", "bfloat16"][1:] == ["-", "1"]
    wrong = {key for key, cells in shown.items() if len(cells) == 3 and cells[1] != "-"}
    assert wrong == {("stem", "cuda", "bfloat16")}


def the_slow_operator_is_named(whole: Whole) -> None:
    heading = next(line for line in whole.verdict if "slower than what they replace" in line)
    lines = whole.section(heading)
    assert lines and all(line.split()[0] == SLOW for line in lines)
    assert heading.startswith(f"{len(lines)} of ")


def what_failed_its_tests_is_not_measured(whole: Whole) -> None:
    listed = {line.partition(": ")[0] for line in whole.section("not measured")}
    assert listed == LEFT_OUT
    rows = results.read(whole.folder / "results.csv")
    suites = {row.suite for row in rows}
    assert {"expand_depthwise", "conv", "fused_mbconv", "project"} <= suites
    assert not {"stem", "gate", "depthwise", "head"} & suites
    networks = {"latency", "models", "train", "memory", "placement", "headline", "roofline"}
    assert networks | {"correctness", "tune"} <= suites
    log = (whole.folder / "log.txt").read_text()
    assert f"no launch of {REFUSED} ran" in log and f"planted: {REFUSED}_kernel is refused" in log


def few_and_small_files(whole: Whole) -> None:
    files = {
        p.relative_to(whole.folder).as_posix(): p for p in whole.folder.rglob("*") if p.is_file()
    }
    assert set(files) == {
        *("results.csv", "static/counts.csv", "checks.jsonl", "log.txt"),
        *("tuning.jsonl", "nvidia_h200.json"),
    }
    assert all(path.stat().st_size < 4 << 20 for path in files.values())


def nothing_was_past_a_limit_or_forbidden_in_a_capture(whole: Whole) -> None:
    assert not whole.complaints.exists(), whole.complaints.read_text()


def the_verdict_can_be_had_again_and_switches_off_all_five(whole: Whole) -> None:
    again = verdict.text(whole.folder, limit=verdict.LIMIT)
    assert again.splitlines()[:5] == whole.verdict[:5]
    tables = whole.folder.parent / "tables"
    tables.mkdir()
    rows = results.read(whole.folder / "results.csv")
    broken = correctness.faulty(correctness.read(whole.folder / "checks.jsonl"))
    text = switching_off.write(rows, tables, broken)
    entries = off_tables.read(tables / "nvidia_h200.off.json")
    assert {entry.op for entry in entries} == {
        *("stem", "squeeze_excite_gate", "depthwise_bias_act"),
        f"{REFUSED}",
    }
    # Small shapes are of no network, and are only named.
    slow = [line for line in text.splitlines() if "left out" in line]
    assert slow and all(SLOW in line for line in slow)
