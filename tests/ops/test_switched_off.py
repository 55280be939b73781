"""The registered ops obey what is switched off. A process registers once, so each case has one of
its own, in which stand-ins take the places of kernels, and the ops' CUDA implementations are given
CPU tensors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from effv2_kernels.launch import off_tables
from effv2_kernels.launch.off_tables import Entry

ROOT = Path(__file__).parents[2]
GPU = "NVIDIA Test GPU (2)"
SCRIPT = """
import dataclasses, json, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message=".* runs through ATen")
import torch
launched = []

import effv2_kernels
from effv2_kernels.engines import native
from effv2_kernels.launch import targets
from effv2_kernels.ops import OPS, _op
from tests.ops.cases import Geometry, arguments, ordered

def counted(name, engine):
    def run(*args):
        launched.append(f"{name}:{engine.name}")
        return OPS[name].aten(*args)
    return run

native.LOADED = True
target = dataclasses.replace(targets.KNOWN["sm_90a"], name=sys.argv[1])
_op._target_of = lambda x: target
for name, op in OPS.items():
    engines = [
        dataclasses.replace(e, run=counted(name, e)) if e.name in ("cuda", "triton") else e
        for e in op.engines
    ]
    object.__setattr__(op, "engines", tuple(engines))
geometry = Geometry((6, 5), (3, 3), (1, 1), (1, 1, 1, 1))
keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
found = {}
for namespace in ("effv2", "effv2_triton"):
    for name, family in OPS.items():
        for dtype in (torch.bfloat16, torch.float32):
            args = ordered(name, arguments(name, geometry, dtype=dtype))
            op = getattr(getattr(torch.ops, namespace), name).default
            launched.clear()
            ours, right = op.redispatch(keys, *args), family.aten(*args)
            ours, right = ((t if isinstance(t, tuple) else (t,))[0] for t in (ours, right))
            same = torch.equal(ours, right) or len(launched) == 2
            found[f"{namespace} {name} {dtype}"] = [*launched, *([] if same else ["WRONG"])]
print(json.dumps(found))
"""
Launched = dict[str, list[str]]


def launched(tmp_path: Path, *entries: Entry, disable: str = "") -> Launched:
    """By "namespace op dtype": which kernels were launched in a process with these entries for GPU
    and this EFFV2_DISABLE. The process has a copy of the package in which nothing is off by its own
    tables, and stand-ins for all kernels."""
    if entries:
        off_tables.write(off_tables.path_of(GPU, tmp_path), entries)
    tree = tmp_path / "tree"
    without = shutil.ignore_patterns("*.off.json", "*.so", "__pycache__")
    shutil.copytree(ROOT / "effv2_kernels", tree / "effv2_kernels", ignore=without)
    environment = {**os.environ, "EFFV2_TABLES": str(tmp_path), "EFFV2_DISABLE": disable}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, GPU],
        env={**environment, "PYTHONPATH": f"{tree}:{ROOT}", "OMP_NUM_THREADS": "1"},
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def entry(op: str, engine: str, reason: str, dtype: str = "any", **shape: int) -> Entry:
    return Entry(op, engine, dtype, tuple(shape.items()), reason, "abc123")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """What is launched where nothing is switched off."""
    return launched(tmp_path_factory.mktemp("none"))


def changes(found: Launched, everything: Launched) -> dict[str, list[str]]:
    return {key: names for key, names in found.items() if names != everything[key]}


def test_every_engine_is_launched_where_nothing_is_off(everything: Launched) -> None:
    assert everything["effv2 squeeze_excite_gate torch.bfloat16"] == ["squeeze_excite_gate:cuda"]
    assert everything["effv2_triton squeeze_excite_gate torch.bfloat16"] == []
    for namespace, depthwise in (("effv2", "cuda"), ("effv2_triton", "triton")):
        for op in ("stem", "conv_bias_act", "gated_project"):
            assert everything[f"{namespace} {op} torch.bfloat16"] == [f"{op}:triton"]
        slides = f"depthwise_bias_act:{depthwise}"
        assert everything[f"{namespace} depthwise_bias_act torch.float32"] == [slides]
        both = everything[f"{namespace} expand_depthwise torch.bfloat16"]
        assert both == ["conv_bias_act:triton", slides]


def test_the_variable(everything: Launched, tmp_path: Path) -> None:
    found = launched(tmp_path, disable="stem:triton,gated_project,conv_bias_act:cuda")
    ops = "stem", "gated_project"
    off = [key for key, names in everything.items() if names and key.split()[1] in ops]
    assert len(off) == 6, "in float32 only who asks for Triton by name gets it"
    assert changes(found, everything) == {key: [] for key in off}


def test_a_table(everything: Launched, tmp_path: Path) -> None:
    wrong = entry("fused_mbconv", "triton", "wrong: 1 of 9 outputs", "bfloat16")
    slow = entry("conv_act_pool", "any", "slower: 0.80x", "bfloat16")
    small = entry("depthwise_bias_act", "cuda", "wrong", height=6, kernel=3, least_batch=1)
    other = entry("stem", "triton", "wrong", height=7)
    slides = ["depthwise_bias_act:triton"]
    assert changes(launched(tmp_path, wrong, slow, small, other), everything) == {
        "effv2 fused_mbconv torch.bfloat16": [],
        "effv2_triton fused_mbconv torch.bfloat16": [],
        "effv2 conv_act_pool torch.bfloat16": [],
        "effv2 depthwise_bias_act torch.bfloat16": slides,
        "effv2 depthwise_bias_act torch.float32": slides,
        "effv2 expand_depthwise torch.bfloat16": ["conv_bias_act:triton", *slides],
        "effv2 expand_depthwise torch.float32": slides,
    }


def test_an_op_with_no_other_kernel(everything: Launched, tmp_path: Path) -> None:
    found = launched(tmp_path, entry("squeeze_excite_gate", "cuda", "wrong", "bfloat16"))
    assert changes(found, everything) == {"effv2 squeeze_excite_gate torch.bfloat16": []}


def test_all_is_on_where_the_variable_says_so(everything: Launched, tmp_path: Path) -> None:
    off = entry("squeeze_excite_gate", "cuda", "wrong"), entry("stem", "any", "wrong")
    assert changes(launched(tmp_path, *off, disable="none"), everything) == {}
