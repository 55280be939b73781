"""The path to a launch, with kernels that only say what they were given."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from effv2_kernels import ops
from effv2_kernels.engines import triton as triton_ops
from effv2_kernels.engines.triton import _compile, _launch
from effv2_kernels.engines.triton._compile import compile_all, compile_for
from effv2_kernels.engines.triton._launch import Instance, launch, recording
from effv2_kernels.launch import targets
from effv2_kernels.launch.triton.conv import Choice
from tests.ops.cases import Arguments, arguments, mapped, ordered

TARGET = targets.KNOWN["sm_90a"]


class StandIn:
    """A kernel that notes what was compiled of it, and what was launched."""

    __name__, __module__ = "kernel", "somewhere"

    def __init__(self) -> None:
        self.fn = self
        self.compiled: list[Instance] = []
        self.launched: list[tuple] = []


class Compiled:
    def __init__(self, kernel: StandIn, number: int):
        self.kernel, self.number = kernel, number

    def __getitem__(self, grid: tuple) -> Any:
        return lambda *args: self.kernel.launched.append((self.number, grid, args))


class Device:
    """Stands in for a CUDA tensor's device."""

    def __init__(self, index: int):
        self.index = index


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_launch, "_COMPILED", {})
    monkeypatch.setattr(_launch, "interpreted", lambda: False)
    yield


def call(kernel: StandIn, *args: Any, grid: tuple = (3, 1, 1), warps: int = 4, **constants: Any):
    def compile(instance: Instance, device: int) -> Compiled:
        kernel.compiled.append(instance)
        return Compiled(kernel, len(kernel.compiled) - 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_launch, "_compile", compile)
        _launch._launch(kernel, grid, args, constants, warps, 2, 0)


def test_a_kernel_is_compiled_once_and_passed_everything_by_position() -> None:
    kernel, x = StandIn(), torch.zeros(64)
    call(kernel, x, None, 7, C=24, ACT="silu")
    constants = (("C", 24), ("ACT", "silu"))
    wanted = Instance("somewhere", "kernel", ("*fp32", None, "i32"), constants, 4, 2)
    assert kernel.compiled == [wanted]
    call(kernel, torch.zeros(128), None, 8, grid=(5, 2, 1), C=24, ACT="silu")
    assert kernel.compiled == [wanted]
    assert [(number, grid) for number, grid, _ in kernel.launched] == [
        (0, (3, 1, 1)),
        (0, (5, 2, 1)),
    ]
    assert kernel.launched[1][2][1:] == (None, 8, 24, "silu"), "all parameters, in their order"


def test_an_address_that_is_no_multiple_of_16_is_part_of_what_is_compiled() -> None:
    kernel, buffer = StandIn(), torch.zeros(64)
    call(kernel, buffer[1:], buffer, C=24)
    assert kernel.compiled[0].types == ("*fp32:1", "*fp32")


@pytest.mark.parametrize(
    "change",
    ["address", "dtype", "missing", "constant", "warps"],
)
def test_what_a_kernel_is_specialised_on_compiles_another(change: str) -> None:
    """An address that is no multiple of 16 above all: the first kernel's loads would fault."""
    kernel, buffer = StandIn(), torch.zeros(64)
    call(kernel, buffer, buffer, 7, C=24)
    second = {
        "address": lambda: call(kernel, buffer[1:], buffer, 7, C=24),
        "dtype": lambda: call(kernel, buffer.half(), buffer, 7, C=24),
        "missing": lambda: call(kernel, buffer, None, 7, C=24),
        "constant": lambda: call(kernel, buffer, buffer, 7, C=25),
        "warps": lambda: call(kernel, buffer, buffer, 7, warps=8, C=24),
    }[change]
    second()
    assert len(kernel.compiled) == 2 and len(set(kernel.compiled)) == 2
    second()
    assert len(kernel.compiled) == 2
    assert [number for number, _, _ in kernel.launched] == [0, 1, 1]


def test_a_launch_is_on_its_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []

    class Guard:
        def __init__(self, device: Device):
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device.index)

        def __exit__(self, *error: object) -> None:
            entered.append(-1)

    class OnDevice:
        def __init__(self, index: int):
            self.device = Device(index)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", Guard)
    launched: list[int] = []
    monkeypatch.setattr(_launch, "_launch", lambda *args: launched.append(args[-1]))
    launch(StandIn(), (1, 1, 1), (OnDevice(0),), {}, warps=4)  # type: ignore[arg-type]
    assert launched == [0] and not entered
    launch(StandIn(), (1, 1, 1), (OnDevice(1),), {}, warps=4)  # type: ignore[arg-type]
    assert launched == [0, 1] and entered == [1, -1]


OPS = (*triton_ops.RUN, "expand_depthwise")


def run(op: str, args: Arguments) -> None:
    """On the engines that are chosen for who asks for Triton by name."""
    engines = ops.Engines(ops.OPS, "cuda", target=TARGET, by_name=True)
    getattr(engines, op).default(*ordered(op, args))


def recorded(op: str, dtype: torch.dtype = torch.bfloat16) -> list[Instance]:
    args = mapped(arguments(op, dtype=dtype, bias_dtype=torch.float32), lambda t: t.to("meta"))
    with recording(TARGET) as found:
        run(op, args)
    return list(found)


@pytest.mark.parametrize("op", OPS)
def test_what_is_passed_is_what_the_kernels_take(op: str) -> None:
    """The short path passes by position: constants last, in the order of the parameters."""
    for instance in recorded(op):
        kernel = getattr(importlib.import_module(instance.module), instance.kernel)
        constants = [name for name, _ in instance.constants]
        assert kernel.arg_names[-len(constants) :] == constants
        assert len(kernel.arg_names) == len(instance.types) + len(constants)
        numbers = [n for n, t in zip(kernel.arg_names, instance.types, strict=False) if t == "i32"]
        assert {p.name for p in kernel.params if p.do_not_specialize} == set(numbers)


@pytest.mark.parametrize("op", OPS)
def test_an_eps_is_compiled_in_where_there_is_a_norm(op: str) -> None:
    """Each convolution's own; a bias alone has one kernel, and partial sums have neither."""

    def found(norm: str, scale: float = 1.0, only: str = "eps") -> list[Instance]:
        args = arguments(op, dtype=torch.bfloat16, norm=norm)
        args |= {name: scale * args[name] for name in args if name.endswith(only)}
        with recording(TARGET) as instances:
            run(op, mapped(args, lambda t: t.to("meta")))
        return list(instances)

    names = [name for name in arguments(op) if name.endswith("eps")]
    kinds = {norm: found(norm) for norm in ("affine", "plain", "none")}
    assert len({tuple(instances) for instances in kinds.values()}) == 3
    for name in names:
        assert found("affine", 2.0, name) != kinds["affine"]
    assert len({tuple(found("affine", 2.0, name)) for name in names}) == len(names)
    assert found("none", 2.0) == kinds["none"]
    absent = [sum(i.types.count(None) for i in kinds[norm]) for norm in ("affine", "plain", "none")]
    assert [n - absent[0] for n in absent] == [0, 2 * len(names), 4 * len(names)]


@pytest.mark.parametrize("op", OPS)
def test_an_instance_is_the_same_on_its_way_to_a_worker(op: str) -> None:
    """An eps above all, which is no round number in binary."""
    for instance in recorded(op):
        sent = json.loads(json.dumps(dataclasses.asdict(instance)))
        sent |= {"types": tuple(sent["types"]), "constants": tuple(map(tuple, sent["constants"]))}
        assert repr(Instance(**sent)) == repr(instance)


@pytest.mark.skipif(triton_ops.interpreted(), reason="kernels are interpreted")
def test_a_thread_computes_the_scales_of_few_columns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not those of its part of a product, which are 16 and more; a bias alone is only added."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile = Choice(block_m=64, block_n=64, block_k=64, split_k=1, warps=4, stages=2)
    monkeypatch.setattr("effv2_kernels.engines.triton.conv.choose", lambda *args: tile)
    for norm, roots in (("affine", 1), ("none", 0)):
        args = arguments("conv_bias_act", dtype=torch.bfloat16, channels=(64, 64), norm=norm)
        with recording(TARGET) as found:
            triton_ops.RUN["conv_bias_act"](
                *ordered("conv_bias_act", mapped(args, lambda t: t.to("meta")))
            )
        (instance,) = found
        ptx = compile_for(instance, TARGET).asm["ptx"]
        assert ptx.count("rsqrt.approx") == roots and "wgmma" in ptx


@pytest.mark.skipif(triton_ops.interpreted(), reason="kernels are interpreted")
def test_what_a_worker_compiled_is_not_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    needed = recorded("depthwise_bias_act")
    compile_all(needed, TARGET, processes=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.cubin")}
    assert len(before) == len(needed) == 2
    for instance in needed:
        assert compile_for(instance, TARGET).asm["cubin"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.cubin")} == before
    # Nor is a worker started, which takes seconds; but one is for another GPU, or other sources.
    started: list[int] = []
    monkeypatch.setattr(_compile, "_Worker", lambda target, share: started.append(len(share)))
    compile_all(needed, TARGET, processes=1)
    assert not started
    with pytest.raises((TypeError, AttributeError)):  # of no worker
        compile_all(needed, targets.KNOWN["sm_80"], processes=1)
    monkeypatch.setattr(_compile, "_sources", lambda: "others")
    with pytest.raises((TypeError, AttributeError)):
        compile_all(needed, TARGET, processes=1)
    monkeypatch.undo()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_compile, "_Worker", lambda target, share: started.append(len(share)))
    next(tmp_path.rglob("*.cubin")).unlink()
    with pytest.raises((TypeError, AttributeError)):
        compile_all(needed, TARGET, processes=1)
    assert started == [2, 2, 1]


WARMS_UP = """
import effv2_kernels as ek, python_ref
from effv2_kernels.launch.targets import KNOWN

model = python_ref.create("b0", num_classes=10).eval().bfloat16()
ek.patch(model)
print(ek.warmup(model, [(2, 3, 64, 64)], target=KNOWN["sm_90a"]))
"""
LAUNCHES = """
import sys
import torch
from triton.compiler import CompiledKernel
import effv2_kernels as ek, python_ref
from effv2_kernels.launch import targets
from effv2_kernels.launch.triton.conv import Choice
from effv2_kernels.engines.triton import _launch
from effv2_kernels.patching import wrappers
from effv2_kernels.patching.warmup import _Recorder
from effv2_kernels.running import inference

inference.folds = wrappers.folds = lambda x, triton: False
# As on a GPU, with real addresses, but that a kernel is neither loaded nor run.
TARGET = targets.KNOWN["sm_90a"]
targets.of_device = lambda device: TARGET
CompiledKernel.__getitem__ = lambda self, grid: lambda *arguments: None

def launch(kernel, grid, arguments, constants, *, warps, stages=1):
    _launch._launch(kernel, grid, arguments, constants, warps, stages, 0)

for name, module in list(sys.modules.items()):
    if name.startswith("effv2_kernels.engines.triton.") and hasattr(module, "launch"):
        module.launch, module.target_of = launch, lambda x: TARGET
model = python_ref.create("b0", num_classes=10).eval().bfloat16()
ek.patch(model)
image = torch.randn(2, 3, 64, 64).bfloat16()
with torch.no_grad(), _Recorder(ek.ops.NATIVE_OPS, TARGET):
    model(image)
print(len(_launch._COMPILED))
"""


@pytest.mark.slow
@pytest.mark.skipif(triton_ops.interpreted(), reason="kernels are interpreted")
def test_what_warmup_compiled_another_process_only_launches(tmp_path: Path) -> None:
    """One key on disk, whichever Triton: a first forward in a new process, with real addresses,
    writes no kernel into the cache that ``warmup`` filled."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}

    def run(code: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return int(done.stdout)

    def compiled() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.cubin")}

    warmed, before = run(WARMS_UP), compiled()
    assert run(LAUNCHES) == warmed == len(before) > 10
    assert compiled() == before


@pytest.mark.skipif(triton_ops.interpreted(), reason="kernels are interpreted")
def test_an_unaligned_tensor_is_read_in_narrower_pieces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with recording(TARGET) as found:
        args = arguments("conv_bias_act", dtype=torch.bfloat16, channels=(16, 32))
        triton_ops.RUN["conv_bias_act"](
            *ordered("conv_bias_act", mapped(args, lambda t: t.to("meta")))
        )
    (instance, *_) = found
    odd = dataclasses.replace(instance, types=("*bf16:1", *instance.types[1:]))
    copies = [compile_for(i, TARGET).asm["ptx"].count("cp.async.ca") for i in (instance, odd)]
    assert copies[0] > 0, "16 bytes at a time, and through L1"
    assert "cp.async.cg" not in compile_for(instance, TARGET).asm["ptx"]
    assert copies[1] != copies[0] and len(list(tmp_path.rglob("*.cubin"))) == 2


def test_kept_kernels_are_found_by_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = StandIn()
    instance = Instance("somewhere", "kernel", ("*bf16", None, "i32"), (("C", 24),), 4, 2)
    module = type("Module", (), {"kernel": kernel})
    monkeypatch.setattr(_launch.importlib, "import_module", lambda name: module)
    _launch.keep(instance, Compiled(kernel, 0), 0)
    call(kernel, torch.zeros(64, dtype=torch.bfloat16), None, 9, C=24)
    assert not kernel.compiled and len(kernel.launched) == 1
    call(kernel, torch.zeros(65, dtype=torch.bfloat16)[1:], None, 9, C=24)
    assert len(kernel.compiled) == 1, "an address that it was not compiled for"


def test_a_kernel_that_does_not_compile_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (good, *_) = recorded("conv_bias_act")
    constants = tuple((n, "tanh" if n == "ACT" else v) for n, v in good.constants)
    bad = Instance(good.module, good.kernel, good.types, constants, 4, 2)
    with pytest.raises(RuntimeError, match="does not compile for NVIDIA H200"):
        compile_all([bad], TARGET, processes=1)
    compile_all([], TARGET)
    done: list[int] = []
    compile_all([bad, good], TARGET, 1, lambda n, of: done.append(n), tolerant=True)
    assert done == [1, 2], "one that is refused must not take those after it along"
