"""Arguments for the eight ops, and what each op must compute, written without the package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import effv2_kernels  # noqa: F401  (registers the ops)
from effv2_kernels import ops
from effv2_kernels.engines import onednn

OPS = (
    "stem",
    "conv_bias_act",
    "fused_mbconv",
    "depthwise_bias_act",
    "expand_depthwise",
    "squeeze_excite_gate",
    "gated_project",
    "conv_act_pool",
)
WINDOWED = ("stem", "conv_bias_act", "fused_mbconv", "depthwise_bias_act", "expand_depthwise")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("contiguous", "channels_last", "sliced")
ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "silu": lambda x: x * torch.sigmoid(x) if x.dtype == torch.float64 else F.silu(x),
    "relu": F.relu,
    "relu6": lambda x: x.clamp(0, 6),
    "hardswish": F.hardswish,
    "gelu": F.gelu,
}
GATES = {"sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid}
NORMS = ("affine", "plain", "none")
# Names of the arguments, in order.
_CONV = ("weight", "bias", "norm", "eps")
_EXPAND, _DEPTHWISE, _PROJECT = (
    tuple(f"{which}_{name}" for name in _CONV) for which in ("expand", "depthwise", "project")
)
NAMES = {
    "stem": ("x", *_CONV, "stride", "padding", "act"),
    "conv_bias_act": ("x", *_CONV, "residual", "stride", "padding", "act"),
    "fused_mbconv": ("x", *_EXPAND, *_PROJECT, "residual", "stride", "padding", "act"),
    "depthwise_bias_act": ("x", *_CONV, "stride", "padding", "act", "squeeze"),
    "expand_depthwise": ("x", *_EXPAND, *_DEPTHWISE, "stride", "padding", "act", "squeeze"),
    "squeeze_excite_gate": (
        *("pooled", "reduce_weight", "reduce_bias", "expand_weight", "expand_bias"),
        *("act", "gate"),
    ),
    "gated_project": ("x", "gate", *_CONV, "residual", "act"),
    "conv_act_pool": ("x", *_CONV, "act"),
}
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Geometry:
    """A convolution's window: padding is (top, bottom, left, right), or () for TF SAME."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)

    def sides(self) -> tuple[int, ...]:
        """TF SAME: the output has ceil(size / stride) elements, the odd element of padding goes
        after. Counted here by searching for the smallest padding that gives that size."""
        if self.padding:
            return self.padding
        sides: list[int] = []
        for size, kernel, stride in zip(self.size, self.kernel, self.stride, strict=True):
            total, wanted = 0, (size + stride - 1) // stride
            while size + total < kernel or (size + total - kernel) // stride + 1 < wanted:
                total += 1
            sides += (total // 2, total - total // 2)
        return tuple(sides)

    def out(self) -> tuple[int, int]:
        top, bottom, left, right = self.sides()
        height, width = self.size[0] + top + bottom, self.size[1] + left + right
        return (
            (height - self.kernel[0]) // self.stride[0] + 1,
            (width - self.kernel[1]) // self.stride[1] + 1,
        )

    def batch(self) -> int:
        """Images that have outputs enough to judge by: of a few, each error is a throw of dice."""
        return 32 if self.out() == (1, 1) else 2


GEOMETRIES = {
    "1x1 of one pixel": Geometry((1, 1), (1, 1)),
    "1x1 stride 2": Geometry((7, 7), (1, 1), (2, 2)),
    "3x3": Geometry((19, 19), (3, 3), (1, 1), (1, 1, 1, 1)),
    "3x3 valid": Geometry((7, 7), (3, 3)),
    "3x3 stride 2": Geometry((38, 75), (3, 3), (2, 2), (1, 1, 1, 1)),
    "3x3 stride 2 uneven": Geometry((38, 75), (3, 3), (2, 2), (0, 1, 0, 1)),
    "3x3 stride 2 SAME": Geometry((38, 75), (3, 3), (2, 2), ()),
    "3x3 SAME": Geometry((7, 19), (3, 3), (1, 1), ()),
    "3x3 four sides": Geometry((7, 9), (3, 3), (2, 1), (0, 1, 2, 3)),
    "5x5": Geometry((7, 7), (5, 5), (1, 1), (2, 2, 2, 2)),
    "5x5 stride 2 SAME": Geometry((19, 38), (5, 5), (2, 2), ()),
    "7x7 of one pixel": Geometry((1, 1), (7, 7), (1, 1), (3, 3, 3, 3)),
    "7x7 of one pixel SAME": Geometry((1, 1), (7, 7), (2, 2), ()),
    "7x7 stride 2": Geometry((19, 19), (7, 7), (2, 2), (3, 3, 3, 3)),
    "3x5": Geometry((7, 9), (3, 5), (1, 1), (1, 1, 2, 2)),
}
SMALL = Geometry((5, 6), (3, 3), (1, 1), (1, 1, 1, 1))


class Maker:
    """Random tensors of one dtype and layout; a layout other than dense lies in a frame of NaN."""

    def __init__(self, dtype: torch.dtype, layout: str, seed: int):
        self.dtype, self.layout = dtype, layout
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale
        values = values.to(dtype or self.dtype)
        if self.layout == "channels_last" and len(shape) == 4:
            return values.contiguous(memory_format=torch.channels_last)
        if self.layout != "sliced":
            return values
        frame = torch.full([2 * size + 3 for size in shape], torch.nan, dtype=values.dtype)
        return frame[tuple(slice(1, 1 + 2 * size, 2) for size in shape)].copy_(values)

    def weight(self, out: int, each: int, kernel: Sequence[int]) -> Tensor:
        return self(out, each, *kernel, scale=(each * kernel[0] * kernel[1]) ** -0.5)

    def norm(self, out: int, kind: str, dtype: torch.dtype | None) -> list[Tensor]:
        """Mean, variance, and gamma and beta if "affine", none of which are the defaults."""
        if kind == "none":
            return []
        mean, spread, gamma, beta = (self(out, dtype=dtype) for _ in range(4))
        found = [mean, spread.square_().add_(0.1)]
        return [*found, gamma.mul_(0.3).add_(1.0), beta] if kind == "affine" else found


def arguments(
    op: str,
    geometry: Geometry = SMALL,
    *,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    batch: int = 2,
    channels: tuple[int, int] = (7, 20),
    act: str = "silu",
    gate: str = "sigmoid",
    extra: bool = True,
    bias: bool = True,
    bias_dtype: torch.dtype | None = None,
    norm: str = "affine",
    seed: int = 0,
) -> Arguments:
    """Random arguments by name. ``extra``: with residual or squeeze, where the op has it; ``norm``:
    one of NORMS; ``bias_dtype``: of every vector of a convolution and its norm."""
    make = Maker(dtype, layout, seed)
    into, out = channels
    height, width = geometry.out()
    window = {"stride": list(geometry.stride), "padding": list(geometry.padding), "act": act}

    def conv(name: str, out: int, each: int, kernel: Sequence[int]) -> Arguments:
        vector = make(out, dtype=bias_dtype) if bias or norm == "none" else None
        return {
            f"{name}weight": make.weight(out, each, kernel),
            f"{name}bias": vector,
            f"{name}norm": make.norm(out, norm, bias_dtype),
            f"{name}eps": 1e-3 if name == "expand_" else 1e-5,
        }

    if op == "squeeze_excite_gate":
        return {
            "pooled": make(batch, out),
            "reduce_weight": make(into, out, scale=out**-0.5),
            "reduce_bias": make(into),
            "expand_weight": make(out, into, scale=into**-0.5),
            "expand_bias": make(out),
            "act": act,
            "gate": gate,
        }
    found = {"x": make(batch, into, *geometry.size)}
    if op == "stem":
        return found | conv("", out, into, geometry.kernel) | window
    if op == "conv_bias_act":
        residual = make(batch, out, height, width) if extra else None
        return found | conv("", out, into, geometry.kernel) | {"residual": residual} | window
    if op == "fused_mbconv":
        residual = extra and (height, width) == geometry.size
        found |= conv("expand_", out, into, geometry.kernel)
        found |= conv("project_", into if residual else out + 3, out, (1, 1))
        return found | {"residual": residual} | window
    if op == "depthwise_bias_act":
        return found | conv("", into, 1, geometry.kernel) | window | {"squeeze": extra}
    if op == "expand_depthwise":
        found |= conv("expand_", out, into, (1, 1)) | conv("depthwise_", out, 1, geometry.kernel)
        return found | window | {"squeeze": extra}
    if op == "gated_project":
        found["gate"] = torch.sigmoid(make(batch, into))
        residual = make(batch, out, *geometry.size) if extra else None
        return found | conv("", out, into, (1, 1)) | {"residual": residual, "act": act}
    assert op == "conv_act_pool"
    return found | conv("", out, into, (1, 1)) | {"act": act}


def ordered(op: str, args: Arguments) -> tuple:
    return tuple(args[name] for name in NAMES[op])


def run(op: str, args: Arguments) -> tuple[Tensor, ...]:
    """The op's outputs, always as a tuple."""
    found = getattr(torch.ops.effv2, op).default(*ordered(op, args))
    return found if isinstance(found, tuple) else (found,)


def engine(op: str, args: Arguments, device: str = "cuda", **choice: Any) -> str:
    """The name of the one that ``Op.choose`` gives the op on a device of that type."""
    return ops.OPS[op].choose(ordered(op, args), device, **choice).engine.name


def mapped(args: Arguments, change: Callable[[Tensor], Tensor]) -> Arguments:
    """With every tensor changed, those of norms too."""
    return {
        k: list(map(change, v)) if k.endswith("norm") else change(v) if isinstance(v, Tensor) else v
        for k, v in args.items()
    }


def tensors(args: Arguments) -> Iterator[Tensor]:
    """All of them, in order, those of norms too."""
    for name, value in args.items():
        if name.endswith("norm"):
            yield from value
        elif isinstance(value, Tensor):
            yield value


def _convolve(x: Tensor, args: Arguments, prefix: str, act: str, window: bool) -> Tensor:
    weight, bias, norm, eps = (args[f"{prefix}{name}"] for name in _CONV)
    kernel, stride = tuple(weight.shape[2:]), (1, 1)
    if window:
        stride = tuple(args["stride"])
        sides = Geometry(tuple(x.shape[2:]), kernel, stride, tuple(args["padding"])).sides()
        x = F.pad(x, (sides[2], sides[3], sides[0], sides[1]))
    groups = x.shape[1] // weight.shape[1]
    y = F.conv2d(x, weight, bias if bias is None else bias.to(x.dtype), stride, groups=groups)
    return ACTS[act](_normed(y, norm, eps) if norm else y)


def _normed(y: Tensor, norm: Sequence[Tensor], eps: float) -> Tensor:
    if not any(vector.requires_grad for vector in norm[:2]):
        return F.batch_norm(y, *norm, eps=eps)
    mean, variance, *affine = (vector[:, None, None].to(y.dtype) for vector in norm)
    gamma, beta = affine or (1.0, 0.0)
    return (y - mean) / (variance + eps).sqrt() * gamma + beta


def _squeezed(y: Tensor, squeeze: bool) -> tuple[Tensor, Tensor]:
    return y, y.mean((2, 3)) if squeeze else y.new_empty((y.shape[0], 0))


def plain(op: str, args: Arguments) -> tuple[Tensor, ...]:
    """The op's result by torch.nn.functional, in the dtype of the arguments."""
    act = args["act"]
    if op == "squeeze_excite_gate":
        hidden = F.linear(args["pooled"], args["reduce_weight"], args["reduce_bias"])
        hidden = F.linear(ACTS[act](hidden), args["expand_weight"], args["expand_bias"])
        return (GATES[args["gate"]](hidden),)
    x, residual = args["x"], args.get("residual")
    if op == "stem":
        return (_convolve(x.to(args["weight"].dtype), args, "", act, True),)
    if op == "conv_bias_act":
        y = _convolve(x, args, "", act, True)
        return (y if residual is None else y + residual,)
    if op == "fused_mbconv":
        y = _convolve(_convolve(x, args, "expand_", act, True), args, "project_", "none", False)
        return (y + x if residual else y,)
    if op == "depthwise_bias_act":
        return _squeezed(_convolve(x, args, "", act, True), args["squeeze"])
    if op == "expand_depthwise":
        y = _convolve(x, args, "expand_", act, False)
        return _squeezed(_convolve(y, args, "depthwise_", act, True), args["squeeze"])
    if op == "gated_project":
        y = _convolve(x * args["gate"][:, :, None, None], args, "", act, False)
        return (y if residual is None else y + residual,)
    assert op == "conv_act_pool"
    return (_convolve(x, args, "", act, False).mean((2, 3)),)


def packed(op: str, args: Arguments, size: Sequence[int] | None = None) -> Arguments:
    """args with every convolution weight prepacked, for inputs of ``size`` (default: x's)."""
    x = args["x"]
    shape = (*x.shape[:2], *(size or x.shape[2:]))
    found = dict(args)
    for name in NAMES[op]:
        if not name.endswith("weight"):
            continue
        weight = args[name]
        window = name in ("weight", "depthwise_weight") or (op, name) == (
            *("fused_mbconv", "expand_weight"),
        )
        window = window and op in WINDOWED
        stride = args["stride"] if window else [1, 1]
        padding = args["padding"] if window else [0, 0, 0, 0]
        groups = shape[1] // weight.shape[1]
        found[name] = onednn.prepack(weight, shape, stride, padding, groups)
        sides = Geometry(shape[2:], tuple(weight.shape[2:]), tuple(stride), tuple(padding)).out()
        shape = (shape[0], weight.shape[0], *sides)
    return found
