"""The native library as built: what it needs, registers, refuses and reports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import effv2_kernels  # noqa: F401  (defines the schemas and loads the library)
from effv2_kernels import _native
from effv2_kernels.engines import native as cuda

OPS = ("stem", "depthwise_bias_act", "expand_depthwise", "squeeze_excite_gate", "convert")
KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
STATUS = _native.load()
needs_library = pytest.mark.skipif(not STATUS.loaded, reason=f"native library {STATUS.reason}")


def output_of(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@needs_library
@pytest.mark.parametrize("op", OPS)
def test_registers_the_cuda_kernel(op: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"effv2_native::{op}", "CUDA")


@pytest.mark.parametrize("load", [_native.load, _native.load_cpu])
def test_needs_neither_cudart_nor_a_cuda_torch(load: Callable[[], _native.NativeStatus]) -> None:
    status = load()
    if not status.loaded:
        pytest.skip(f"library {status.reason}")
    lines = output_of("readelf", "-d", str(status.path)).splitlines()
    needed = [line for line in lines if "NEEDED" in line]
    assert any("[libtorch.so]" in line for line in needed)
    assert not [x for x in needed if "cuda" in x or "python" in x or "omp" in x]
    paths = [line for line in lines if "PATH" in line]
    assert not paths, "a path of the build machine in the library"


@needs_library
def test_undefined_cuda_symbols_are_weak() -> None:
    undefined = output_of("nm", "-D", "--undefined-only", str(STATUS.path)).splitlines()
    symbols = {line.split()[-1]: line.split()[-2] for line in undefined}
    strong = [name for name, kind in symbols.items() if kind == "U"]
    # aoti_torch_device_type_cuda is a constant that every torch has.
    cuda = [n for n in strong if "cu" in n.lower() and not n.startswith("_Z")]
    assert cuda == ["aoti_torch_device_type_cuda"]
    assert symbols["aoti_torch_get_current_cuda_stream"] == "w"


def arguments(**changes: torch.Tensor) -> list[torch.Tensor]:
    n, m, r = 2, 12, 4
    tensors = {
        "pooled": torch.randn(n, m),
        "reduce_weight": torch.randn(r, m),
        "reduce_bias": torch.randn(r),
        "expand_weight": torch.randn(m, r),
        "expand_bias": torch.randn(m),
    }
    return list({**tensors, **changes}.values())


def gate(*tensors: torch.Tensor, act: str = "silu", gate: str = "sigmoid") -> torch.Tensor:
    """The CUDA implementation, with CPU tensors: it checks the device last."""
    return torch.ops.effv2_native.squeeze_excite_gate.default.redispatch(KEYS, *tensors, act, gate)


@needs_library
@pytest.mark.parametrize(
    ("changes", "named", "message"),
    [
        ({}, {}, r"pooled must be on a CUDA device, found cpu"),
        (
            {"pooled": torch.randn(2, 12, 1, 1)},
            {},
            r"pooled must be \(N, M\), found \(2, 12, 1, 1\)",
        ),
        ({"reduce_weight": torch.randn(4)}, {}, r"reduce_weight must be \(R, M\), found \(4\)"),
        (
            {"reduce_weight": torch.randn(4, 11)},
            {},
            r"reduce_weight must be \(R, M\) = \(4, 12\), found \(4, 11\)",
        ),
        ({"reduce_bias": torch.randn(5)}, {}, r"reduce_bias must be \(R\) = \(4\), found \(5\)"),
        (
            {"expand_weight": torch.randn(4, 12)},
            {},
            r"expand_weight must be \(M, R\) = \(12, 4\), found \(4, 12\)",
        ),
        ({"expand_bias": torch.randn(12, 1)}, {}, r"expand_bias must be \(M\) = \(12\), found"),
        (
            {"reduce_weight": torch.randn(0, 12)},
            {},
            r"reduce_weight must have 1 to 2\^27 rows, found 0",
        ),
        ({"pooled": torch.randn(2, 0)}, {}, r"pooled must have 1 to 2\^27 channels, found 0"),
        (
            {"expand_bias": torch.randn(12).half()},
            {},
            r"expand_bias must have the dtype of pooled, Float, found Half",
        ),
        (
            {"expand_weight": torch.randn(4, 12).t()},
            {},
            r"expand_weight must be contiguous, found strides \(1, 12\)",
        ),
        ({}, {"act": "swish"}, r'act must be one of silu, relu, .*, found "swish"'),
        ({}, {"gate": "tanh"}, r'gate must be one of sigmoid, hardsigmoid, found "tanh"'),
    ],
)
def test_contract(changes, named, message) -> None:
    with pytest.raises(RuntimeError, match="^effv2::squeeze_excite_gate: " + message):
        gate(*arguments(**changes), **named)


@needs_library
def test_float64_is_refused() -> None:
    with pytest.raises(
        RuntimeError, match="pooled must be float32, float16 or bfloat16, found Double"
    ):
        gate(*(t.double() for t in arguments()))


@needs_library
def test_gates_of_cuda_tensors_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made contiguous; what it has no code for is declined."""
    stand_in = SimpleNamespace(squeeze_excite_gate=SimpleNamespace(default=gate_of_all))
    monkeypatch.setattr(cuda, "NATIVE", stand_in)
    with pytest.raises(RuntimeError, match="pooled must be on a CUDA device, found cpu"):
        cuda.squeeze_excite_gate(*arguments(expand_weight=torch.randn(4, 12).t()))
    doubles = [tensor.double() for tensor in arguments()]
    assert cuda.why_not_gate(doubles, None) == "it does not compute in float64"
    empty = arguments(reduce_weight=torch.randn(0, 12))
    assert cuda.why_not_gate(empty, None) == "there are no channels"


def gate_of_all(*args: Any) -> torch.Tensor:
    return gate(*args[:5], act=args[5], gate=args[6])


@needs_library
@pytest.mark.parametrize(
    ("sources", "dtype", "message"),
    [
        ([torch.ones(3)], torch.float16, "the first source must be on a CUDA device, found cpu"),
        ([torch.ones(3)], torch.float64, "dtype must be float32, float16 or bfloat16, found Doub"),
        ([torch.ones(3).int()], torch.float16, "a source must be float32, float16 or bfloat16"),
        ([torch.ones(4, 4)[:, ::2]], torch.float16, "a source must be contiguous, found strides"),
        (
            [torch.ones(4, 3, 3, 3).transpose(2, 3)],
            torch.float16,
            "a source must be contiguous, found strides",
        ),
        (
            [torch.ones(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)],
            torch.float16,
            "the first source must be on a CUDA device, found cpu",
        ),
    ],
)
def test_what_convert_refuses(sources, dtype, message) -> None:
    with pytest.raises(RuntimeError, match=f"^effv2::convert: {message}"):
        torch.ops.effv2_native.convert.default.redispatch(KEYS, sources, dtype)


@needs_library
def test_build_info() -> None:
    info = _native.build_info()
    assert info["version"] == effv2_kernels.__version__
    assert info["torch_target"] == "2.10"
    assert int(info["cuda"].split(".")[0]) >= 11
    compiled = {a for a in info["architectures"] if a.startswith("sm_")}
    assert compiled
    kernels = [k for k in info["kernels"] if "squeeze_excite_gate_kernel" in k["name"]]
    assert {k["architecture"] for k in kernels} == compiled
    assert len(kernels) == 18 * len(compiled)


@needs_library
def test_no_kernel_spills() -> None:
    for kernel in _native.build_info()["kernels"]:
        assert kernel["spill_store_bytes"] == kernel["spill_load_bytes"] == 0, kernel
        assert kernel["local_bytes"] == 0, kernel
        assert 0 < kernel["registers"] <= 255
        assert kernel["shared_bytes"] <= 48 * 1024


def native_in_new_process(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", f"from effv2_kernels import _native\n{code}"]
    root = str(Path(effv2_kernels.__file__).parents[1])
    path = {"PYTHONPATH": root, "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, env={**path, **environment}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_skipping_is_a_reason() -> None:
    code = "print(_native.load().reason, _native.load_cpu().reason, sep='|')"
    printed = native_in_new_process(code, EFFV2_SKIP_NATIVE="1")
    assert printed.split("|") == ["skipped: EFFV2_SKIP_NATIVE=1 is set"] * 2


def test_a_library_that_fails_to_load_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "_ops.so").write_text("not a library")
    code = (
        f"from pathlib import Path\n_native._FOLDER = Path({str(tmp_path)!r})\n"
        "_native.load.cache_clear()\nstatus = _native.load()\nprint(status.loaded, status.reason)"
    )
    assert native_in_new_process(code).startswith("False failed to load: ")


def test_no_library_is_a_reason(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path\n_native._FOLDER = Path({str(tmp_path)!r})\n"
        "_native.load.cache_clear()\nprint(_native.load().reason)"
    )
    expected = "this is an install without _ops.so (nvcc was missing or failed at build time)"
    assert native_in_new_process(code) == f"not built: {expected}"


@pytest.mark.parametrize("how", ["not at all", "in a site folder", "editable"])
def test_a_source_tree_says_which_installation_it_hides(how: str, tmp_path: Path) -> None:
    """In a clone, Python finds the sources in the current folder before what is installed."""
    source, (tree, site, other) = Path(effv2_kernels.__file__).parent, (
        tmp_path / name for name in ("clone", "site", "other")
    )  # fmt: skip
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(source, tree / "effv2_kernels", ignore=ignored)
    (tree / "setup.py").touch()
    information = site / "effv2_kernels-0.1.0.dist-info"
    installed = (other if how == "editable" else site) / "effv2_kernels"
    for folder in (information, installed):
        folder.mkdir(parents=True)
    if how != "not at all":
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: effv2_kernels\n")
        (installed / "_ops.so").touch()
    if how == "editable":
        origin = {"url": other.as_uri(), "dir_info": {"editable": True}}
        (information / "direct_url.json").write_text(json.dumps(origin))
    # Without the installation of these tests: it is editable, too.
    code = (
        "import sys, runpy; from importlib import metadata\n"
        "find = metadata.Distribution.discover\n"
        f"metadata.distributions = lambda **k: find(path=[{str(site)!r}])\n"
        "from effv2_kernels import _native; print(_native.load().reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=True
    )
    assert str(tree) in done.stdout and "setup.py build_ext --inplace" in done.stdout
    if how == "not at all":
        assert "nvcc was missing or" in done.stdout
    else:
        assert f"finds before the package installed in {installed};" in done.stdout
        assert "run from another folder" in done.stdout
