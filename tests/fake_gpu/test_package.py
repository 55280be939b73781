"""The package where a GPU is: ``patch``, ``capture``, ``warmup``, ``tune``, ``info``, and what is
switched off; by the kernels that were launched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fake_gpu.machine import NOTHING, Machine

#: Counts kernels by (a part of) their names over one forward of B0, after a warm-up.
SCRIPT = """
import ctypes, json, sys, torch, python_ref
import effv2_kernels as ek
from effv2_kernels.engines.triton import _launch

launches = ctypes.CDLL(None).fake_gpu_launches
KERNELS = ("stem_kernel", "squeeze_excite_gate_kernel", "fused_mbconv_kernel", "conv_kernel")
def counted(call):
    before = [launches(k.encode()) for k in KERNELS]
    call()
    return {k: launches(k.encode()) - n for k, n in zip(KERNELS, before)}

model = python_ref.create("efficientnetv2_b0").eval().to("cuda", torch.bfloat16)
report = ek.patch(model, strict=True)
x = torch.randn(2, 3, 64, 64, device="cuda", dtype=torch.bfloat16)
with torch.inference_mode():
    warmed = ek.warmup(model, [tuple(x.shape)])
    known = len(_launch._COMPILED)
    eager = counted(lambda: model(x))
    again = counted(lambda: model(x))
    run = ek.capture(model, x)
    replayed = counted(lambda: run(x))
found = {"report": str(report), "eager": eager, "again": again, "replayed": replayed}
found |= {"kernels": launches(b"")}
run(x)
found["kernels"] = launches(b"") - found["kernels"]
found |= {"warmed": warmed, "late": len(_launch._COMPILED) - known, "reasons": list(run.reasons)}
with torch.inference_mode():
    model.forward_features(x)  # the head without its pool, on the same input
    found["after"] = counted(lambda: model(x))
print(json.dumps(found))
"""


def count(machine: Machine, variables: dict[str, str] | None = None) -> dict:
    status, output = machine.run(["python", "-c", SCRIPT], variables or NOTHING)
    assert status == 0, output
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def usual(machine: Machine) -> dict:
    return count(machine)


def test_a_patched_model_runs_our_kernels(usual: dict) -> None:
    assert usual["eager"]["stem_kernel"] == 1
    assert usual["eager"]["squeeze_excite_gate_kernel"] == 16  # MBConv blocks of B0
    assert usual["eager"]["fused_mbconv_kernel"] > 0
    assert usual["again"] == usual["eager"] == usual["after"]
    assert 40 < usual["kernels"] < 90


def test_a_graph_replays_the_same_kernels(usual: dict) -> None:
    assert usual["reasons"] == []
    assert usual["replayed"] == usual["eager"]


def test_nothing_compiles_after_warmup(usual: dict) -> None:
    assert usual["warmed"] > 10 and usual["late"] == 0


OFF = {
    "variable": {"EFFV2_DISABLE": "stem:cuda,squeeze_excite_gate"},
    "table": [
        {"op": "stem", "engine": "cuda", "reason": "wrong: 3 of 13 outputs"},
        {"op": "squeeze_excite_gate", "engine": "any", "reason": "slower: 0.80x"},
    ],
}


@pytest.mark.parametrize("by", OFF)
def test_what_is_switched_off_is_not_launched(
    by: str, machine: Machine, usual: dict, tmp_path: Path
) -> None:
    if by == "table":
        entries = [{**entry, "dtype": "bfloat16", "commit": "abc123"} for entry in OFF[by]]
        (tmp_path / "nvidia_h200.off.json").write_text(json.dumps(entries))
        variables = {"EFFV2_TABLES": str(tmp_path)}
        reasons = ["wrong: 3 of 13 outputs, measured at abc123", "slower: 0.80x"]
    else:
        variables, reasons = OFF[by], ["EFFV2_DISABLE"]
    found = count(machine, variables)
    for run in ("eager", "again", "replayed"):
        assert found[run]["stem_kernel"] == found[run]["squeeze_excite_gate_kernel"] == 0
        assert found[run]["conv_kernel"] > usual[run]["conv_kernel"]  # Triton's stem
        assert found[run]["fused_mbconv_kernel"] == usual[run]["fused_mbconv_kernel"]
    _, info = machine.run(["python", "-m", "effv2_kernels", "info"], variables)
    for text in (found["report"], info):
        for reason in reasons:
            assert reason in text
        assert "stem: " in text and "cuda is switched off" in text


def test_info(machine: Machine) -> None:
    status, output = machine.run(["python", "-m", "effv2_kernels", "info"])
    assert status == 0, output
    assert "NVIDIA H200, sm_90, 140 GiB" in output
    assert "native library:   loaded from" in output
    assert "cuda:             can run: native kernels: depthwise_bias_act" in output


def test_tune(machine: Machine, tmp_path: Path) -> None:
    command = "python -m effv2_kernels tune --model efficientnetv2_b0 --sizes 64 --batch 1"
    words = [*command.split(), "--candidates", "1", "--output", str(tmp_path)]
    status, output = machine.run(words)
    assert status == 0, output
    assert "NVIDIA H200: 24 launches" in output and "24 launches tuned" in output
    assert len(json.loads((tmp_path / "nvidia_h200.json").read_text())) == 24
