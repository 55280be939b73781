"""Wrong arguments: one clear error each, whether the op runs or is traced."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.ops.cases import GEOMETRIES, OPS, WINDOWED, Arguments, arguments, mapped, run

Change = Callable[[Arguments], object]
Wrong = tuple[str, Change, str]


def replace(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda args: args.update({name: change(args[name])})


def _map(name: str) -> list[Wrong]:
    return [
        (f"{name} of rank 3", replace(name, lambda t: t[0]), rf"{name} must be \(N, C, H, W\)"),
        (f"{name} of integers", replace(name, Tensor.int), f"{name} must be float32, float16"),
        (f"{name} complex", replace(name, lambda t: t + 0j), f"{name} must be float32, float16"),
    ]


def _conv(prefix: str = "", *, kernel: bool = False, typed: bool = True) -> list[Wrong]:
    weight, bias, norm = f"{prefix}weight", f"{prefix}bias", f"{prefix}norm"

    def replace_in_norm(index: int, change: Callable[[Tensor], Tensor]) -> Change:
        def change_it(args: Arguments) -> None:
            args[norm] = [change(v) if i == index else v for i, v in enumerate(args[norm])]

        return change_it

    wrong = [
        (
            f"{weight} of rank 2",
            replace(weight, lambda t: t[:, :, 0, 0]),
            f"{weight} must be .O, I",
        ),
        (f"{weight} channels", replace(weight, lambda t: t.repeat(1, 2, 1, 1)), f"{weight} takes"),
        (f"{bias} length", replace(bias, lambda t: t[1:]), rf"{bias} must be \("),
        (f"{bias} rank", replace(bias, lambda t: t[:, None]), rf"{bias} must be \("),
        (f"{bias} dtype", replace(bias, Tensor.half), f"{bias} must be float32 or"),
        (
            f"{norm} of three",
            lambda args: args.update({norm: args[norm][:3]}),
            f"{norm} must be em",
        ),
        (f"{norm} length", replace_in_norm(2, lambda t: t[1:]), rf"{norm}'s gamma must be \("),
        (f"{norm} rank", replace_in_norm(3, lambda t: t[:, None]), rf"{norm}'s beta must be \("),
        (f"{norm} dtype", replace_in_norm(0, Tensor.half), f"{norm}'s mean must be float32 or"),
        (f"{norm} device", replace_in_norm(1, lambda t: t.to("meta")), f"{norm}'s variance is on"),
        (f"{prefix}eps", _set(**{f"{prefix}eps": 0.0}), f"{prefix}eps must be positive"),
        (f"{weight} device", replace(weight, lambda t: t.to("meta")), f"{weight} is on"),
        (f"{bias} device", replace(bias, lambda t: t.to("meta")), f"{bias} is on"),
    ]
    if typed:
        text = f"{weight} is torch.bfloat16 and x is torch.float32"
        wrong.append((f"{weight} dtype", replace(weight, Tensor.bfloat16), text))
    else:
        text = f"{weight} must be float32, float16"
        wrong.append((f"{weight} of integers", replace(weight, Tensor.int), text))
    if kernel:
        wrong.append(
            (f"{weight} 3x3", replace(weight, lambda t: t.repeat(1, 1, 3, 3)), "must be 1x1")
        )
    return wrong


def _cut(prefix: str, args: Arguments) -> Arguments:
    """The convolution without its first output."""
    own = {name: args[f"{prefix}{name}"] for name in ("weight", "bias", "norm")}
    return {
        f"{prefix}{name}": [v[1:] for v in value] if name == "norm" else value[1:]
        for name, value in own.items()
    }


def _set(**values: object) -> Change:
    return lambda args: args.update(values)


ACT: list[Wrong] = [("act", _set(act="swish"), "act must be one of none, silu.*got 'swish'")]
WINDOW: list[Wrong] = [
    ("stride of one", _set(stride=[2]), "stride must be two positive integers"),
    ("stride zero", _set(stride=[1, 0]), "stride must be two positive integers"),
    ("padding of two", _set(padding=[1, 1]), "padding must be .top, bottom, left, right."),
    ("padding negative", _set(padding=[1, 1, -1, 1]), "padding must be .top, bottom"),
    (
        "kernel beyond the map",
        lambda args: args.update(x=args["x"][:, :, :2, :2], padding=[0, 0, 0, 0]),
        "kernel does not fit into 2x2 padded by",
    ),
]
RESIDUAL: list[Wrong] = [
    ("residual size", replace("residual", lambda t: t[:, :, 1:]), "residual must be"),
    ("residual batch", replace("residual", lambda t: t[:1]), "residual must be"),
    ("residual rank", replace("residual", lambda t: t[0]), "residual must be"),
    ("residual dtype", replace("residual", Tensor.bfloat16), "residual is torch.bfloat16 and x"),
    ("residual device", replace("residual", lambda t: t.to("meta")), "residual is on"),
]
GATE: list[Wrong] = [
    ("gate size", replace("gate", lambda t: t[:, 1:]), "gate must be"),
    ("gate batch", replace("gate", lambda t: t[:1]), "gate must be"),
    ("gate rank", replace("gate", lambda t: t[:, :, None, None]), "gate must be"),
    ("gate dtype", replace("gate", Tensor.half), "gate is torch.float16 and x is torch.float32"),
    ("gate device", replace("gate", lambda t: t.to("meta")), "gate is on"),
]
_SE = ("reduce_weight", "reduce_bias", "expand_weight", "expand_bias")
WRONG: dict[str, list[Wrong]] = {
    "stem": _map("x") + _conv(typed=False) + WINDOW + ACT,
    "conv_bias_act": _map("x") + _conv() + WINDOW + ACT + RESIDUAL,
    "fused_mbconv": [
        *_map("x"),
        *_conv("expand_"),
        *_conv("project_", kernel=True),
        *WINDOW,
        *ACT,
        ("residual of stride 2", _set(stride=[2, 2]), "residual must be"),
        (
            "residual of other channels",
            lambda args: args.update(_cut("project_", args)),
            "residual must be",
        ),
    ],
    "depthwise_bias_act": [
        *_map("x"),
        *_conv(),
        *WINDOW,
        *ACT,
        ("channels", replace("x", lambda t: t[:, 1:]), "weight is for 7 channels, x has 6"),
    ],
    "expand_depthwise": [
        *_map("x"),
        *_conv("expand_", kernel=True),
        *_conv("depthwise_"),
        *WINDOW,
        *ACT,
        (
            "two widths",
            lambda args: args.update(_cut("depthwise_", args)),
            "expand gives 20 channels, depthwise takes 19",
        ),
    ],
    "squeeze_excite_gate": [
        ("pooled of rank 4", replace("pooled", lambda t: t[..., None, None]), "pooled must be"),
        ("integers", lambda args: args.update(mapped(args, Tensor.int)), "pooled must be float32"),
        ("scalar weight", replace("reduce_weight", lambda t: t[0, 0]), "reduce_weight must be"),
        *((f"{n} size", replace(n, lambda t: t[..., 1:]), f"{n} must be") for n in _SE),
        *((f"{n} dtype", replace(n, Tensor.half), f"{n} is torch.float16, pooled") for n in _SE),
        *((f"{n} device", replace(n, lambda t: t.to("meta")), f"{n} is on") for n in _SE),
        *ACT,
        ("gate", _set(gate="silu"), "gate must be one of sigmoid, hardsigmoid, got 'silu'"),
    ],
    "gated_project": _map("x") + _conv(kernel=True) + GATE + ACT + RESIDUAL,
    "conv_act_pool": _map("x") + _conv(kernel=True) + ACT,
}
ALL = [(op, *wrong) for op in OPS for wrong in WRONG[op]]
IDS = [f"{op}-{label}" for op, label, *_ in ALL]


def wrong_arguments(op: str, change: Change) -> Arguments:
    args = arguments(op)
    change(args)
    return args


@pytest.mark.parametrize(("op", "label", "change", "text"), ALL, ids=IDS)
def test_one_clear_error(op: str, label: str, change: Change, text: str) -> None:
    args = wrong_arguments(op, change)
    with pytest.raises(RuntimeError, match=f"^effv2::{op}: .*{text}"):
        run(op, args)
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        pytest.raises(RuntimeError, match=f"effv2::{op}: .*{text}"),
    ):
        run(op, mapped(args, mode.from_tensor))


@pytest.mark.parametrize("op", OPS)
def test_raised_where_autograd_records(op: str) -> None:
    label, change, text = WRONG[op][0]
    args = wrong_arguments(op, change)
    with pytest.raises(RuntimeError, match=f"effv2::{op}: .*{text}"):
        run(op, mapped(args, lambda t: t.requires_grad_()))


@pytest.mark.parametrize("op", OPS)
def test_raised_while_torch_compile_traces(op: str) -> None:
    label, change, text = WRONG[op][-1]
    args = wrong_arguments(op, change)
    torch._dynamo.reset()
    compiled = torch.compile(lambda a: run(op, a)[0], backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match=f"(?s)effv2::{op}: .*{text}"):
        compiled(args)


@pytest.mark.parametrize("op", OPS)
def test_right_arguments_raise_nothing(op: str) -> None:
    """Or every test above would pass for the wrong reason."""
    run(op, arguments(op))
    if op in WINDOWED:
        run(op, arguments(op, GEOMETRIES["7x7 of one pixel SAME"]))
