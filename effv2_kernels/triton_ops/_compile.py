"""Compiles kernels that are not running yet: for any NVIDIA GPU, without having one, into Triton's
cache, where a launch finds them.

``python -m effv2_kernels.triton_ops._compile`` does so for the instances on its standard input, one
JSON object a line after the architecture's line: the worker of ``compile_all``.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ..launch.targets import Target
from ._launch import Instance


def compile_for(instance: Instance, target: Target) -> Any:
    """The ``triton.compiler.CompiledKernel``, from the cache if it is there. Its tensors' addresses
    are multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(instance.module), instance.kernel)
    constants = dict(instance.constants)
    run_time = [name for name in kernel.arg_names if name not in constants]
    types = dict(zip(run_time, instance.types, strict=True))
    constants.update((name, None) for name, kind in types.items() if kind is None)
    signature, constexprs, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else types[name]
        if name in constants:
            constexprs[(index,)] = constants[name]
        elif signature[name].startswith("*"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    major, minor = target.capability
    return triton.compile(
        ASTSource(kernel, signature, constexprs, attributes),
        target=GPUTarget("cuda", 10 * major + minor, 32),
        options={"num_warps": instance.warps, "num_stages": instance.stages},
    )


def compile_all(
    instances: Sequence[Instance],
    target: Target,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compile instances in parallel processes. progress: called with how many are done, and of how
    many. Raises RuntimeError with the compiler's words if one fails."""
    count = max(1, min(processes or os.cpu_count() or 1, len(instances)))
    command = [sys.executable, "-m", __name__]
    workers = []
    for first in range(count):
        worker = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        lines = [asdict(target), *(asdict(i) for i in instances[first::count])]
        assert worker.stdin is not None
        worker.stdin.write("\n".join(map(json.dumps, lines)))
        worker.stdin.close()
        workers.append(worker)
    done, failures = 0, []
    for worker in workers:
        assert worker.stdout is not None and worker.stderr is not None
        for _ in worker.stdout:
            done += 1
            if progress is not None:
                progress(done, len(instances))
        error = worker.stderr.read()
        if worker.wait():
            failures.append(error.strip())
    if failures:
        raise RuntimeError(f"a Triton kernel does not compile for {target.name}:\n{failures[0]}")


def _work(lines: Sequence[str]) -> None:
    head, *rest = map(json.loads, lines)
    target = Target(**{**head, "capability": tuple(head["capability"])})
    for found in rest:
        types = tuple(found.pop("types"))
        constants = tuple((name, value) for name, value in found.pop("constants"))
        compile_for(Instance(types=types, constants=constants, **found), target)
        print("done", flush=True)


if __name__ == "__main__":
    _work(sys.stdin.read().splitlines())
