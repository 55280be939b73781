"""Builds what the machine has compilers for; without any this is a pure-Python package.

The libraries come out of ninja, in build/native, which is kept so that only what changed is
compiled again. `_cpu.so`, with a C++ compiler: the passes of training on a CPU. With a CUDA toolkit
`_ops.so`, the CUDA ops, and `_C`, a pybind11 module of this Python that reports what was built and
compares objects faster than Python can.
`_cpu.so` and `_ops.so` are on torch's stable ABI, tied to no Python and no torch version. torch is
never imported.

    EFFV2_CUDA_ARCHS="90a;80"  only these architectures; "80+PTX" adds PTX for newer GPUs
    EFFV2_NO_CUDA=1            no CUDA kernels, whatever is installed
    EFFV2_NO_NATIVE=1          pure Python, whatever is installed
    CXX=g++-13                 the C++ compiler, of nvcc too (default: c++)
    MAX_JOBS=4                 compile jobs (default: from cores and free memory)
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

BUILD = Path("build/native")
TORCH_TARGET = "2.10"
OPS = ["conv_ops", "convert_ops", "gate_ops"]  # what includes torch
CPU = ["backward", "forward", "passes"]  # of csrc/cpu
# Not -ffast-math: a NaN stays a NaN. Without errno and traps loops become vector code.
CPU_FLAGS = "-O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wall"
# sm_80 also serves 8.6 and 8.9, sm_100 10.3, sm_120 12.1. PTX of 10.0, not of 12.0: it also
# serves 11.0.
DEFAULT_ARCHS = ["80", "90a", "100+PTX", "120"]
PROBE = """
#include <cuda_runtime.h>
#if CUDART_VERSION < 12000
#error "effv2_kernels needs CUDA 12 or newer"
#endif
__global__ void probe() {}
"""


def find_cxx() -> tuple[str, str]:
    """(C++ compiler, "") where it compiles and links, else ("", why there are no CPU passes)."""
    if os.environ.get("EFFV2_NO_NATIVE") == "1":
        return "", "EFFV2_NO_NATIVE=1 was set"
    if importlib.util.find_spec("torch") is None:
        return "", "torch, whose headers are needed, is not installed where the build runs"
    if importlib.util.find_spec("ninja") is None and shutil.which("ninja") is None:
        return "", "ninja is not installed where the build runs"
    cxx = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if cxx is None:
        return "", "no c++ or g++ on PATH, and CXX is not set"
    torch = [f"-I{torch_folder()}/include", f"-L{torch_folder()}/lib", "-ltorch"]
    command = [cxx, "-std=c++17", "-fPIC", *torch]
    return probed(cxx, command, "probe.cpp", "#include <torch/csrc/stable/ops.h>\n")


def find_nvcc() -> tuple[str, str]:
    """(nvcc, "") where it compiles and links a kernel, else ("", why there are no CUDA kernels)."""
    for variable in ("EFFV2_NO_NATIVE", "EFFV2_NO_CUDA"):
        if os.environ.get(variable) == "1":
            return "", f"{variable}=1 was set"
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")
    if nvcc is None:
        return "", "no nvcc in CUDA_HOME or on PATH"
    for module in ("torch", "pybind11"):
        if importlib.util.find_spec(module) is None:
            return "", f"{module}, whose headers are needed, is not installed where the build runs"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "", "Python.h is missing (the python3-dev package of your system)"
    return probed(nvcc, [nvcc, *ccbin(), "-Xcompiler", "-fPIC"], "probe.cu", PROBE)


def probed(compiler: str, command: list[str], name: str, source: str) -> tuple[str, str]:
    """(compiler, "") if the command makes a library of the source, else ("", what it said)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_text(source)
        command = [*command, "-shared", "-o", f"{folder}/probe.so", f"{folder}/{name}"]
        try:
            probe = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            return "", f"{compiler} cannot be run: {error.strerror}"
    if probe.returncode != 0:
        said = (probe.stderr or probe.stdout).strip()[-300:]
        return "", f"{Path(compiler).name} cannot compile and link: {said}"
    return compiler, ""


def torch_folder() -> Path:
    return Path(importlib.util.find_spec("torch").submodule_search_locations[0])


def ccbin() -> list[str]:
    return ["-ccbin", os.environ["CXX"]] if os.environ.get("CXX") else []


def gencode(nvcc: str) -> list[str]:
    """-gencode flags: what EFFV2_CUDA_ARCHS asks for, or the default as far as nvcc knows it."""
    listed = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True)
    known = set(re.findall(r"compute_(\d+)", listed))
    asked = re.split(r"[;,\s]+", os.environ.get("EFFV2_CUDA_ARCHS", ""))
    asked = [re.sub(r"^sm_|\.", "", arch) for arch in asked if arch]
    for arch in asked:
        if arch.removesuffix("+PTX").rstrip("af") not in known:
            sys.exit(f"EFFV2_CUDA_ARCHS: this nvcc does not know {arch!r}, only {sorted(known)}")
    archs = asked or [arch for arch in DEFAULT_ARCHS if re.match(r"\d+", arch)[0] in known]
    if archs == ["80", "90a"]:  # a toolkit from before 10.0; PTX of 9.0a would serve 9.0 only
        archs.append("90+PTX")
    flags = []
    for arch in archs:
        name = arch.removesuffix("+PTX")
        ptx = f",compute_{name}" if arch.endswith("+PTX") else ""
        flags.append(f"'-gencode=arch=compute_{name},code=[sm_{name}{ptx}]'")  # quoted for sh
    return flags


def write_ninja(version: str) -> None:
    major, minor = map(int, TORCH_TARGET.split("."))
    target = f"0x{major:02x}{minor:02x}000000000000ull"
    # libtorch by name, needed or not: the weak stream symbol is found through its dependencies.
    text = f"""\
builddir = {BUILD}
with_torch = -DTORCH_TARGET_VERSION={target} -isystem {torch_folder()}/include
link_torch = -L{torch_folder()}/lib -Xlinker --no-as-needed -Xlinker -ltorch $
  -Xlinker --as-needed -Xlinker --exclude-libs -Xlinker ALL
"""
    text += cpu_ninja(CXX) if CXX else ""
    text += cuda_ninja(NVCC, version) if NVCC else ""
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "build.ninja").write_text(text)


def cpu_ninja(cxx: str) -> str:
    objects = {f"$builddir/cpu/{name}.o": f"csrc/cpu/{name}.cpp" for name in CPU}
    text = f"""\
rule cpu
  command = {cxx} -std=c++17 {CPU_FLAGS} -fPIC -fvisibility=hidden $with_torch $
    -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link_cpu
  command = {cxx} -shared -o $out $in $link_torch
build $builddir/_cpu.so: link_cpu {" ".join(objects)}
"""
    return text + "".join(f"build {out}: cpu {source}\n" for out, source in objects.items())


def cuda_ninja(nvcc: str, version: str) -> str:
    import pybind11

    archs = gencode(nvcc)
    host = " ".join([nvcc, *ccbin(), "-std=c++17 -Xcompiler -fPIC,-fvisibility=hidden -Icsrc"])
    kernels = sorted(path.stem for path in Path("csrc").glob("*.cu"))
    objects = " ".join(f"$builddir/{name}.o" for name in [*OPS, *kernels])
    logs = " ".join(f"$builddir/{name}.log" for name in kernels)
    cuda = re.search(r"V([\d.]+)", subprocess.check_output([nvcc, "--version"], text=True))[1]
    values = {
        "VERSION": version,
        "CUDA_VERSION": cuda,
        "ARCHITECTURES": ",".join(re.findall(r"(?<=[\[,])(?:sm|compute)_\w+", " ".join(archs))),
        "TORCH_TARGET": TORCH_TARGET,
        "TORCH_VERSION": importlib.metadata.version("torch"),
    }
    values = " ".join(f"{key}={value}" for key, value in values.items())
    text = f"""\
rule cuda
  command = {host} -O3 {" ".join(archs)} -Xptxas -v -MD -MF $log.d -c $in -o $obj > $log 2>&1 $
    || (cat $log; exit 1)
  depfile = $log.d
  deps = gcc
rule cxx
  command = {host} -O2 -Xcompiler -Wall $flags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {host} -shared -nodlink -o $out $in $flags
rule info
  command = {sys.executable} csrc/build_info.py $out {values} $in
  restat = 1
build $builddir/build_info.h: info {logs} | csrc/build_info.py
build $builddir/_ops.so: link {objects}
  flags = -cudart static $link_torch
build $builddir/module.o: cxx csrc/module.cpp | $builddir/build_info.h
  flags = -I$builddir -isystem {sysconfig.get_path("include")} -isystem {pybind11.get_include()}
build $builddir/_C.so: link $builddir/module.o
  flags = -cudart none
"""
    for name in OPS:
        text += f"build $builddir/{name}.o: cxx csrc/{name}.cpp\n"
        text += "  flags = $with_torch\n"
    for name in kernels:
        text += f"build $builddir/{name}.o $builddir/{name}.log: cuda csrc/{name}.cu\n"
        text += f"  obj = $builddir/{name}.o\n  log = $builddir/{name}.log\n"
    return text


def compile_jobs() -> str:
    """One job a core, and 2 GB of free memory for each."""
    memory = Path("/proc/meminfo")
    free = re.search(r"MemAvailable:\s+(\d+)", memory.read_text()) if memory.exists() else None
    by_memory = int(free[1]) // (2 * 2**20) if free else 2
    return os.environ.get("MAX_JOBS") or str(max(1, min(os.cpu_count() or 1, by_memory)))


class BuildNative(build_ext):
    def build_extensions(self) -> None:
        write_ninja(self.distribution.get_version())
        ninja = [sys.executable, "-m", "ninja"] if importlib.util.find_spec("ninja") else ["ninja"]
        subprocess.check_call([*ninja, "-f", f"{BUILD}/build.ninja", "-j", compile_jobs()])
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(BUILD / f"{extension.name.split('.')[-1]}.so", target)

    def get_ext_filename(self, name: str) -> str:
        # Those that torch loads and nobody imports: their names carry no Python ABI.
        own = name.replace(".", "/") + ".so"
        return own if name.endswith(("_ops", "_cpu")) else super().get_ext_filename(name)


class BuildPython(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for library, why_not in WHY_NOT.items():  # for _native.py; pip hides what a build prints
            note = Path(self.build_lib, "effv2_kernels", f"{library}_not_built.txt")
            note.write_text(why_not + "\n")


CXX, why_no_cpu = find_cxx()
NVCC, why_no_cuda = find_nvcc()
WHY_NOT = {name: why for name, why in (("_cpu", why_no_cpu), ("_ops", why_no_cuda)) if why}
for name, why in WHY_NOT.items():
    print(f"effv2_kernels: a build without {name}.so: {why}", file=sys.stderr)
extensions = (
    [Extension("effv2_kernels._cpu", [f"csrc/cpu/{name}.cpp" for name in CPU])] if CXX else []
)
if NVCC:
    extensions += [
        Extension("effv2_kernels._ops", [f"csrc/{name}.cpp" for name in OPS]),
        Extension("effv2_kernels._C", ["csrc/module.cpp"]),
    ]
setup(ext_modules=extensions, cmdclass={"build_ext": BuildNative, "build_py": BuildPython})
