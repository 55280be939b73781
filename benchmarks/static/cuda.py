"""The static table of the CUDA kernels: what ptxas and the machine code say of every instance that
V2-S, M, L and B7 use.

It reads the native build of this checkout (``setup.py build_ext --inplace``), of whose
architectures it takes those of ``targets.KNOWN``. The machine code is read by cuobjdump, which
comes with the CUDA toolkit or with Triton.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from effv2_kernels import _native
from effv2_kernels.launch import targets
from effv2_kernels.launch.native import depthwise, expand_depthwise
from python_ref.variants import find

from .. import results

ROOT = Path(__file__).parents[2]
OBJECTS = ROOT / "build" / "native"
SUITE = "cuda"
MODELS = ("s", "m", "l", "v1_b7")
DTYPES = {
    "float": torch.float32,
    "__half": torch.float16,
    "__nv_bfloat16": torch.bfloat16,
}
SHORT = {"float": "float32", "__half": "float16", "__nv_bfloat16": "bfloat16"}
# Where the gate keeps its hidden vectors, as the compiler spells the values of the enumeration.
HIDDEN = {
    "(effv2::squeeze_excite::Hidden)0": "shared",
    "(effv2::squeeze_excite::Hidden)1": "cluster",
}
# Which activations an instance of depthwise_kernel is for, as kSilu says.
SILU = {"true": "silu", "false": "others"}
# The shape of which an expand_depthwise is tabled: in channels, channels, side, side of the output.
SHAPES = {
    (3, 1): (160, 960, 24, 24),  # V2-S, stage 5
    (3, 2): (64, 256, 48, 24),  # V2-S, stage 4
    (5, 1): (80, 480, 75, 75),  # B7, stage 3
    (5, 2): (48, 288, 150, 75),  # B7, stage 3
}
UNITS = {
    "registers": "registers",
    "spill_bytes": "B",
    "shared_bytes": "B",
    "blocks_per_sm": "blocks",
    "load16_share": "ratio",
    "mma_instructions": "instructions",
}
# Of the instances of depthwise_kernel for SiLU only: what the row loop takes an output.
OUTPUT_INSTRUCTIONS = "output_instructions"
THREADS_PER_SM = 2048
BLOCKS_PER_SM = 32
# Registers come in groups of 8 for each thread, shared memory in 128 bytes, and 1 KB for a block.
REGISTER_UNIT = 8
SHARED_UNIT = 128
SHARED_RESERVED = 1024


@dataclass(frozen=True)
class Instance:
    """A kernel instance: its family, its template arguments as text, and how it is launched where
    it needs most: threads of a block and dynamic shared memory."""

    family: str
    arguments: tuple[str, ...]
    threads: int
    dynamic_bytes: int

    @property
    def case(self) -> str:
        short = (SHORT.get(a) or HIDDEN.get(a) or SILU.get(a) or a for a in self.arguments)
        return f"{self.family}<{', '.join(short)}>"

    @property
    def outputs_of_a_turn(self) -> int:
        """That a turn of the row loop finishes; 0 where there is no such loop. It has as many rows
        as a window reaches at once (csrc/common/depthwise.cuh)."""
        if self.family != "depthwise_kernel" or self.arguments[-1] != "true":
            return 0
        kernel, stride, width = map(int, self.arguments[1:4])
        rows = (kernel - 1) // stride + 1
        return rows * depthwise.columns_of_a_strip(kernel, width) * width


@dataclass(frozen=True)
class Code:
    """What the machine code of a kernel holds."""

    loads: int
    loads16: int
    mma: int
    loop: int = 0  # instructions of the innermost loop that has nearly all of the multiplications


def windows() -> list[tuple[int, int]]:
    """(kernel, stride) of every depthwise convolution in MODELS."""
    stages = [stage for name in MODELS for stage in find(name).stages if stage.kind == "mbconv"]
    found = {(stage.kernel, stride) for stage in stages for stride in (1, stage.stride)}
    return sorted(found)


def instances(architecture: str = "sm_90a") -> Iterator[Instance]:
    """What MODELS need, whichever dtype they run in, and how they are launched there."""
    for dtype in DTYPES:
        yield _stem(dtype, 64)
        yield Instance("squeeze_finish_kernel", (dtype,), 128, 0)
        shared, cluster = HIDDEN
        for images, hidden in ((1, shared), (2, shared), (4, shared), (8, shared), (1, cluster)):
            arguments = (dtype, str(images), hidden)
            yield Instance("squeeze_excite_gate_kernel", arguments, 512, images * 4 * 160)
    for kernel, stride in windows():
        for dtype in DTYPES:
            for silu in SILU:
                yield _depthwise(dtype, kernel, stride, silu)
        for dtype in ("__half", "__nv_bfloat16"):
            for chunk in expand_depthwise.CHUNKS:
                yield _expand(dtype, kernel, stride, chunk, architecture)


def _stem(dtype: str, channels: int) -> Instance:
    """As Layout of csrc/stem.cu."""
    item = DTYPES[dtype].itemsize
    shared = 17 * 240 * item + channels * (8 + 4 * (16 if item == 2 else 27))
    pitch = channels + (8 if channels % 16 == 0 else 0)
    return Instance("stem_kernel", (dtype,), 128, shared + (4 * 32 * pitch * 2 if item == 2 else 0))


def _depthwise(dtype: str, kernel: int, stride: int, silu: str) -> Instance:
    width = depthwise.channels_of_a_thread(64, kernel, DTYPES[dtype])
    item = DTYPES[dtype].itemsize
    share = 16 // (width * item)  # lanes, which fill up the columns of an input row
    columns = (depthwise.columns_of_a_strip(kernel, width) - 1) * stride + kernel
    threads = depthwise.THREADS
    staged = 4 * -(-columns // share) * share * threads * width * item
    arguments = (dtype, str(kernel), str(stride), str(width), silu)
    return Instance("depthwise_kernel", arguments, threads, staged + 4 * threads * width)


@functools.cache
def _expand(dtype: str, kernel: int, stride: int, chunk: int, architecture: str) -> Instance:
    """As the launch choice lays it out for 128 images, with that chunk."""
    into, channels, side, out = SHAPES[kernel, stride]
    window = kernel, stride, DTYPES[dtype]
    problem = expand_depthwise.Problem(128, into, channels, (side, side), (out, out), *window)
    target = targets.KNOWN.get(architecture, targets.KNOWN["sm_80"])
    found = expand_depthwise.fused(problem, target, (chunk,))
    assert found is not None
    shared = expand_depthwise.shared_bytes(problem, found[1])
    arguments = (dtype, str(kernel), str(stride), str(chunk))
    return Instance("expand_depthwise_kernel", arguments, expand_depthwise.THREADS, shared)


def rows() -> list[results.Row]:
    """The table of the known architectures that were built. Raises RuntimeError where nothing was,
    or cuobjdump is missing."""
    info = _native.build_info()
    if not info:
        raise RuntimeError(f"no native build to read: {_native.load().reason}")
    usage = {(k["architecture"], signature(k["name"])): k for k in info["kernels"]}
    base = _base_row()
    found = [replace(base, case="toolkit", metric="cuda", value=info["cuda"], unit="version")]
    for architecture in sorted({architecture for architecture, _ in usage} & set(targets.KNOWN)):
        code = machine_code(architecture)
        for instance in instances(architecture):
            key = (instance.family, instance.arguments)
            values = metrics(instance, usage[architecture, key], code[key], architecture)
            if instance.outputs_of_a_turn:
                of_output = code[key].loop / instance.outputs_of_a_turn
                values[OUTPUT_INSTRUCTIONS] = f"{of_output:.4g}"
            found += [
                replace(
                    base,
                    case=instance.case,
                    metric=metric,
                    value=value,
                    unit=UNITS.get(metric, "instructions"),
                    dtype=SHORT[instance.arguments[0]],
                    gpu=architecture,
                    p20=value,
                    p80=value,
                )
                for metric, value in values.items()
            ]
    return found


def metrics(instance: Instance, usage: dict, code: Code, architecture: str) -> dict[str, str]:
    shared = usage["shared_bytes"] + instance.dynamic_bytes
    share = code.loads16 / code.loads if code.loads else 0.0
    blocks = blocks_per_sm(usage["registers"], shared, instance.threads, architecture)
    return {
        "registers": str(usage["registers"]),
        "spill_bytes": str(usage["spill_store_bytes"] + usage["spill_load_bytes"]),
        "shared_bytes": str(shared),
        "blocks_per_sm": str(blocks),
        "load16_share": f"{share:.4g}",
        "mma_instructions": str(code.mma),
    }


def blocks_per_sm(registers: int, shared: int, threads: int, architecture: str) -> int:
    """As the occupancy calculator of the CUDA toolkit counts them."""
    target = targets.KNOWN.get(architecture, targets.KNOWN["sm_80"])
    of_thread = -(-registers // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = target.registers_per_multiprocessor // (of_thread * threads)
    of_block = -(-shared // SHARED_UNIT) * SHARED_UNIT + SHARED_RESERVED
    by_shared = target.shared_per_multiprocessor // of_block
    return min(by_registers, by_shared, THREADS_PER_SM // threads, BLOCKS_PER_SM)


def signature(name: str) -> tuple[str, tuple[str, ...]]:
    """(family, template arguments) of a demangled kernel name."""
    found = re.search(r"(\w+)<(.*?)>\s*\((?!int\)|effv2::squeeze_excite::Hidden\))", name)
    if found is None:
        return name, ()
    arguments = re.sub(r"\(int\)", "", found[2])
    return found[1], tuple(argument.strip() for argument in arguments.split(","))


def machine_code(architecture: str) -> dict[tuple[str, tuple[str, ...]], Code]:
    """What the kernels of ``architecture`` in the build hold, by ``signature``."""
    found = {}
    for path in sorted(OBJECTS.glob("*.o")):
        if not (OBJECTS / f"{path.stem}.log").exists():
            continue  # host code
        command = [cuobjdump(), "-sass", "-arch", architecture, str(path)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        functions = re.split(r"^\s*Function : ", listing, flags=re.MULTILINE)[1:]
        names = _demangled([text.split(None, 1)[0] for text in functions])
        for name, text in zip(names, functions, strict=True):
            found[signature(name)] = count(text)
    return found


def count(text: str) -> Code:
    """Loads from global memory: the asynchronous copies of a kernel that has such, for what else it
    loads is weights, once a thread; all that is loaded in the others, and their slow paths for
    what is not aligned."""
    copies = re.findall(r"\bLDGSTS(\S*)", text)
    loads = copies or re.findall(r"\bLDG(\.\S*)", text)
    wide = [kind for kind in loads if ".128" in kind]
    return Code(len(loads), len(wide), len(re.findall(r"\bHMMA\b", text)), loop(text))


def loop(text: str) -> int:
    """Instructions of the shortest loop with at least 80 % of the fused multiplications."""
    found = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", text)
    code = [(int(address, 16), instruction) for address, instruction in found]
    multiplications = [address for address, instruction in code if " FFMA" in f" {instruction}"]
    lengths = []
    for address, instruction in code:
        branch = re.search(r"\bBRA\b.*?\b0x([0-9a-f]+)", instruction)
        if branch is None or int(branch[1], 16) >= address:
            continue
        start = int(branch[1], 16)
        inside = [a for a in multiplications if start <= a <= address]
        if len(inside) >= 0.8 * len(multiplications) > 0:
            lengths.append(sum(start <= a <= address for a, _ in code))
    return min(lengths, default=0)


def cuobjdump() -> str:
    """From the toolkit on PATH, or from Triton. Raises RuntimeError if it is in neither."""
    found = shutil.which("cuobjdump")
    if found:
        return found
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if path.exists():
            return str(path)
    raise RuntimeError("cuobjdump is neither on PATH nor in Triton")


def _demangled(names: list[str]) -> list[str]:
    command = ["c++filt"]
    text = subprocess.run(command, input="\n".join(names), capture_output=True, text=True).stdout
    return text.splitlines()


def _base_row() -> results.Row:
    where = replace(results.environment(torch.device("cpu")), gpu="none", driver="none")
    return results.Row(
        suite=SUITE,
        case="",
        impl="effv2",
        metric="",
        value="",
        unit="",
        batch="",
        resolution="",
        dtype="",
        samples="1",
        p20="",
        p80="",
        **asdict(where),
    )
