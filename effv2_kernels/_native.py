"""The native libraries: loads them, says why not where it cannot, reports what was built.

Nothing here raises: without `_ops.so` the ops run on Triton, through ATen or on the CPU, and
`load().reason` is what `effv2_kernels.backends()` shows; without `_cpu.so` training on a CPU runs
through ATen. EFFV2_SKIP_NATIVE=1 leaves both alone.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class NativeStatus:
    """Whether a library's ops are registered; else `reason` says why not, in words."""

    loaded: bool
    reason: str
    path: Path | None


@functools.cache
def load() -> NativeStatus:
    """Loads `_ops.so` once a process, which registers the ops of `effv2_native`.

    Their schemas are the library's own.
    """
    return _load("_ops.so", "nvcc")


@functools.cache
def load_cpu() -> NativeStatus:
    """Loads `_cpu.so` once a process, which registers the ops of `effv2_cpu`.

    These are the passes of training on a CPU.
    """
    return _load("_cpu.so", "a C++ compiler")


def _load(library: str, compiler: str) -> NativeStatus:
    if os.environ.get("EFFV2_SKIP_NATIVE") == "1":
        return NativeStatus(False, "skipped: EFFV2_SKIP_NATIVE=1 is set", None)
    path = _FOLDER / library
    if not path.exists():
        return NativeStatus(False, f"not built: {_why_not_built(library, compiler)}", None)
    try:
        torch.ops.load_library(str(path))
    except Exception as error:  # whatever the loader says is the reason
        return NativeStatus(False, f"failed to load: {error}", path)
    return NativeStatus(True, "", path)


def _why_not_built(library: str, compiler: str) -> str:
    note, tree = _FOLDER / f"{Path(library).stem}_not_built.txt", _FOLDER.parent
    if note.exists() or not (tree / "setup.py").exists():
        missing = f"{compiler} was missing or failed at build time"
        why = note.read_text().strip() if note.exists() else missing
        return f"this is an install without {library} ({why})"
    build = "`python setup.py build_ext --inplace`"
    shadowed = _installed_elsewhere(library)
    if shadowed is not None:
        return (
            f"this is the source tree {tree}, which Python finds before the package installed in "
            f"{shadowed}; run from another folder, or build here with {build}"
        )
    return f"this is the source tree {tree}, where {compiler} was missing or {build} was not run"


def _installed_elsewhere(library: str) -> Path | None:
    """Another copy of the package that has the library: in a site folder, or the tree of an
    editable installation."""
    for found in metadata.distributions(name="effv2_kernels"):
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        editable = origin.get("dir_info", {}).get("editable", False)
        root = unquote(urlparse(origin["url"]).path) if editable else str(found.locate_file(""))
        folder = Path(root).resolve() / "effv2_kernels"
        if folder != _FOLDER and (folder / library).exists():
            return folder
    return None


def build_info() -> dict[str, Any]:
    """What was built, from the pybind11 module `_C`; empty for a pure-Python install.

    Keys: version, cuda, architectures, torch_target, built_with_torch, host_compiler and kernels: a
    list of dicts, one for each kernel and architecture, with name, architecture, registers,
    shared_bytes, local_bytes, spill_store_bytes and spill_load_bytes.
    """
    module = _module()
    return {} if module is None else module.build_info()


@functools.cache
def unchanged() -> Callable[[tuple, tuple, tuple], bool] | None:
    """``_C.unchanged(items, sizes, kinds)``; None where there is no such module."""
    module = None if os.environ.get("EFFV2_SKIP_NATIVE") == "1" else _module()
    return getattr(module, "unchanged", None)


def _module() -> Any:
    # Looked for here first: the import hook of an editable install may know of another copy.
    if not any(_FOLDER.glob("_C.*so")):
        return None
    try:
        return importlib.import_module("effv2_kernels._C")
    except ImportError:  # built for another Python; load() says what works
        return None
