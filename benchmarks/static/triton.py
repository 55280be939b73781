"""Every Triton kernel that EfficientNetV2-S, M and L launch, compiled for three architectures:
registers, spills, shared memory, tensor-core instructions.

``rows`` compiles; that takes a processor second or two for each of some 750 kernels.
"""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import effv2_kernels
import python_ref
from benchmarks.results import Environment, Row, environment
from effv2_kernels.engines.triton._compile import compile_all, compile_for
from effv2_kernels.engines.triton._launch import Instance
from effv2_kernels.launch.targets import KNOWN
from effv2_kernels.patching.warmup import launches

MODELS = ("efficientnetv2_s", "efficientnetv2_m", "efficientnetv2_l")
BATCHES = (1, 128)
SOURCES = "all sources"
_PACKAGE = Path(effv2_kernels.__file__).parent
_HASHED = (
    *(f"triton_kernels/{name}.py" for name in ("activations", "gather", "norm", "conv")),
    *("triton_kernels/pointwise.py", "engines/triton/pointwise.py"),
    *("triton_kernels/fused_mbconv.py", "triton_kernels/pool.py", "triton_kernels/depthwise.py"),
    "launch/targets.py",
    *(f"launch/triton/{name}.py" for name in ("dense", "conv", "fused_mbconv", "conv_act_pool")),
    *("launch/triton/depthwise.py", "launch/triton/selection.py"),
    *(f"engines/triton/{name}.py" for name in ("_arguments", "conv", "fused_mbconv", "pool")),
    "engines/triton/depthwise.py",
)
# The newest matrix instruction of each architecture, in PTX: an older one is a path that was lost.
_TENSOR_CORES = {"sm_80": "mma.sync", "sm_90a": "wgmma.mma_async", "sm_100": "tcgen05.mma"}
_UNITS = {
    "registers": "registers a thread",
    "spill_bytes": "bytes a thread",
    "shared_bytes": "bytes",
    "tensor_core_instructions": "instructions",
}
_DTYPES = {"*bf16": "bfloat16", "*fp16": "float16", "*fp32": "float32"}


@dataclass(frozen=True)
class Resources:
    """Of a compiled kernel. spill_bytes: its stack frame, where nothing of ours lies;
    tensor_core_instructions: the architecture's own matrix instructions in its PTX."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_core_instructions: int


def resources(compiled: Any, architecture: str) -> Resources:
    """Reads a ``triton.compiler.CompiledKernel``, with the cuobjdump that Triton brings."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    instruction = re.escape(_TENSOR_CORES[architecture])
    return Resources(
        registers=int(used["REG"]),
        spill_bytes=int(used["STACK"]) + int(used["LOCAL"]),
        shared_bytes=compiled.metadata.shared,
        tensor_core_instructions=len(re.findall(rf"\b{instruction}\b", compiled.asm["ptx"])),
    )


def instances(architecture: str, models: Iterable[str] = MODELS) -> list[Instance]:
    """The kernels of the networks in bfloat16 at their training and evaluation sizes, each once."""
    found: dict[Instance, None] = {}
    for name in models:
        variant = python_ref.variants.VARIANTS[name]
        sides = variant.train_size, variant.eval_size
        sizes = [(batch, 3, side, side) for batch in BATCHES for side in sides]
        with torch.device("meta"):
            model = python_ref.create(name).eval().to(torch.bfloat16)
        effv2_kernels.patch(model)
        target = KNOWN[architecture]
        found.update(dict.fromkeys(launches(model, sizes, target, native=frozenset())))
    return list(found)


def rows(
    architectures: Iterable[str] = tuple(KNOWN),
    models: Iterable[str] = MODELS,
    processes: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Row]:
    """The table, and a row that says what it was made from. progress: called with an architecture,
    how many of its kernels are compiled, and of how many."""
    where = environment(torch.device("cpu"))
    found = [_row(where, SOURCES, "sha256", fingerprint(), "", "", "all")]
    models = tuple(models)
    for architecture in architectures:
        needed, target = instances(architecture, models), KNOWN[architecture]

        def report(done: int, total: int, architecture: str = architecture) -> None:
            if progress is not None:
                progress(architecture, done, total)

        compile_all(needed, target, processes, report)
        for instance in needed:
            measured = asdict(resources(compile_for(instance, target), architecture))
            case, dtype = case_of(instance), _DTYPES[str(instance.types[0])]
            found += [
                _row(where, case, metric, str(value), _UNITS[metric], dtype, architecture)
                for metric, value in measured.items()
            ]
    return found


def case_of(instance: Instance) -> str:
    """The kernel and everything that it was compiled with, in one line."""
    words = [instance.kernel.removesuffix("_kernel")]
    for name, value in instance.constants:
        if isinstance(value, bool):
            words += [name.lower()] if value else []
        else:
            words.append(f"{name.lower()}={value}")
    return " ".join([*words, f"warps={instance.warps}", f"stages={instance.stages}"])


def fingerprint() -> str:
    """Of the code that decides what is compiled, without its comments and docstrings."""
    digest = hashlib.sha256()
    for name in _HASHED:
        digest.update(name.encode())
        digest.update(_code((_PACKAGE / name).read_text()).encode())
    return digest.hexdigest()


def _code(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            body[0] = ast.Pass()
    return ast.dump(tree)


def _row(
    where: Environment, case: str, metric: str, value: str, unit: str, dtype: str, gpu: str
) -> Row:
    return Row(
        suite="triton",
        case=case,
        impl="effv2",
        metric=metric,
        value=value,
        unit=unit,
        batch="any",
        resolution="any",
        dtype=dtype,
        samples="1",
        p20="",
        p80="",
        **asdict(where) | {"gpu": gpu, "driver": "none"},
    )
