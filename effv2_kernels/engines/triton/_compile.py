"""Compiles kernels that are not running yet: for any NVIDIA GPU, without having one, into Triton's
cache, where ``compile_for`` finds them in another process.

``python -m effv2_kernels.engines.triton._compile`` does so for the instances on its standard input,
one JSON object a line after the architecture's line: the worker of ``compile_all``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from ...launch.targets import Target
from ._launch import Instance, options

# The hook of ``_copies_through_l1`` is the process's.
_HOOKED = threading.Lock()


def compile_for(instance: Instance, target: Target) -> Any:
    """The ``triton.compiler.CompiledKernel``, from the cache if it is there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(instance.module), instance.kernel)
    constants = dict(instance.constants)
    run_time = [name for name in kernel.arg_names if name not in constants]
    types = dict(zip(run_time, instance.types, strict=True))
    constants.update((name, None) for name, kind in types.items() if kind is None)
    signature: dict[str, Any] = {}
    constexprs: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list] = {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            constexprs[(index,)] = constants[name]
            continue
        signature[name], _, alignment = types[name].partition(":")
        if signature[name].startswith("*") and not alignment:
            attributes[(index,)] = [["tt.divisibility", 16]]
    major, minor = target.capability
    with _copies_through_l1() if constants.get("THROUGH_L1") else nullcontext():
        return triton.compile(
            ASTSource(kernel, signature, constexprs, attributes),
            target=GPUTarget("cuda", 10 * major + minor, 32),
            options=options(instance.warps, instance.stages),
        )


@contextmanager
def _copies_through_l1() -> Iterator[None]:
    """Within it, asynchronous copies of 16 bytes are allocated in L1. Triton always has them pass
    it by (``cp.async.cg``), whatever cache modifier a load asks for: nine taps of a window are then
    read nine times from L2. In PTX it is one letter, and Triton's hook for looking at the stages of
    a compilation (3.6 and later have it) is where it can be changed. Without the hook the copies
    are as they were: right, and slower."""
    import triton

    runtime = getattr(getattr(triton, "knobs", None), "runtime", None)
    if runtime is None or not hasattr(runtime, "add_stages_inspection_hook"):
        yield
        return
    with _HOOKED:
        before = runtime.add_stages_inspection_hook
        mine = threading.get_ident()  # the hook is the process's, and others compile meanwhile

        def hook(backend: Any = None, stages: Any = None, *rest: Any) -> Any:
            found = before(backend, stages, *rest) if before is not None else ("", "")
            if stages is not None and threading.get_ident() == mine:
                make_ptx = stages["ptx"]
                stages["ptx"] = lambda *args: _through_l1(make_ptx(*args))
            return found

        runtime.add_stages_inspection_hook = hook
        try:
            yield
        finally:
            runtime.add_stages_inspection_hook = before


def _through_l1(ptx: str) -> str:
    return ptx.replace("cp.async.cg.shared.global", "cp.async.ca.shared.global")


def compile_all(
    instances: Sequence[Instance],
    target: Target,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    tolerant: bool = False,
) -> None:
    """Compile instances in parallel processes, without those that Triton's cache has. progress:
    called with how many are done, and of how many that are not there yet. Raises RuntimeError with
    the compiler's words if one fails, unless it is ``tolerant``: what does not compile is then left
    for the launch to find out."""
    instances = [instance for instance in instances if not _is_noted(instance, target)]
    count = max(1, min(processes or os.cpu_count() or 1, len(instances)))
    shares = [instances[first::count] for first in range(count)] if instances else []
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(target, share)) for share in shares]
        done, failures = 0, []
        for worker in workers:
            for answer in worker.answers():
                done += 1
                failures += [answer[7:].strip()] if answer.startswith("failed:") else []
                if progress is not None:
                    progress(done, len(instances))
            failures += worker.failure()
    if failures and not tolerant:
        raise RuntimeError(f"a Triton kernel does not compile for {target.name}:\n{failures[0]}")


def _is_noted(instance: Instance, target: Target) -> bool:
    """Whether a worker has compiled it and the result is where it was put. Only Triton's own
    compilation finds that out for certain, and to start a process for it takes seconds; a note that
    is wrong costs a compilation at launch."""
    note = _note(instance, target)
    return note.exists() and Path(note.read_text()).exists()


def _note(instance: Instance, target: Target) -> Path:
    """A file in Triton's cache, of the path of the kernel's binary."""
    import triton

    what = (*astuple(instance), target.capability, _sources(), triton.__version__)
    name = hashlib.sha256(repr(what).encode()).hexdigest()
    knobs = getattr(triton, "knobs", None)  # of Triton 3.4 and later
    folder = knobs.cache.dir if knobs else os.environ.get("TRITON_CACHE_DIR", "~/.triton/cache")
    return Path(folder).expanduser() / "effv2_kernels" / name


@functools.cache
def _sources() -> str:
    """Of the kernels, and of how they are compiled."""
    package = Path(__file__).parents[2]
    files = [*package.glob("engines/triton/_*.py"), *package.glob("triton_kernels/*.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


class _Worker:
    """A process that compiles its share; it ends with the block that it is used in."""

    def __init__(self, target: Target, share: Sequence[Instance]):
        # A file, not a pipe, so that a talkative compiler does not wait for a reader.
        self._words = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            env=_environment(),
        )
        parts: list[Any] = [target, *share]
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            pipe.write("\n".join(json.dumps(asdict(part)) for part in parts))

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._words.close()

    def answers(self) -> Iterator[str]:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            yield from pipe

    def failure(self) -> list[str]:
        """What it said if it failed."""
        if self._process.wait() == 0:
            return []
        self._words.seek(0)
        return [self._words.read().strip()]


def _environment() -> dict[str, str]:
    """This process's, with its import path, and with kernels that are compiled."""
    paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    return {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | paths


def _write_note(note: Path, compiled: Any) -> None:
    binary = next(path for name, path in compiled.metadata_group.items() if name.endswith("cubin"))
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(str(binary))


def _work(lines: Sequence[str]) -> None:
    head, *rest = map(json.loads, lines)
    target = Target(**{**head, "capability": tuple(head["capability"])})
    for found in rest:
        types = tuple(found.pop("types"))
        constants = tuple((name, value) for name, value in found.pop("constants"))
        try:
            instance = Instance(types=types, constants=constants, **found)
            compiled = compile_for(instance, target)
        except Exception as error:  # Triton's or ptxas's: the next one may compile
            print(f"failed: {' '.join(str(error).split())[:2000]}", flush=True)
        else:
            print("done", flush=True)
            with suppress(OSError):  # a note is a convenience
                _write_note(_note(instance, target), compiled)


if __name__ == "__main__":
    _work(sys.stdin.read().splitlines())
