"""The training ops by themselves: what PyTorch asks of an op, and one clear error each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import effv2_kernels  # noqa: F401  (registers the ops)

Arguments = dict[str, Any]
N, CHANNELS, MID, HIDDEN = 2, 6, 10, 3
SIZE = 9, 7
POINTWISE: Arguments = {"stride": (1, 1), "padding": (0, 0, 0, 0)}


def _conv(prefix: str, shape: tuple[int, ...], kind: str) -> Arguments:
    out = shape[0]
    frozen = [torch.randn(out), torch.rand(out) + 0.5] if kind == "frozen" else []
    affine = [] if kind == "bare" else [torch.rand(out) + 0.5, torch.randn(out)]
    bias = torch.randn(out) if kind == "frozen" else None
    return {
        f"{prefix}weight": torch.randn(shape),
        f"{prefix}bias": bias,
        f"{prefix}affine": affine,
        f"{prefix}frozen": frozen,
        f"{prefix}eps": 1e-3,
    }


def _gate(channels: int, kind: str) -> list[Tensor]:
    if kind == "bare":
        return []
    shapes = (HIDDEN, channels, 1, 1), (HIDDEN,), (channels, HIDDEN, 1, 1), (channels,)
    return [torch.randn(shape) for shape in shapes]


def _rest(kind: str, **acts: str) -> Arguments:
    """residual: with a mask; bare: SAME, with a stride."""
    residual = kind == "residual"
    return {
        "mask": torch.tensor([0.0, 1.25]) if residual else None,
        "residual": residual,
        "stride": (2, 2) if kind == "bare" else (1, 1),
        "padding": () if kind == "bare" else (1, 1, 1, 1),
        **acts,
    }


def arguments(op: str, kind: str) -> Arguments:
    """kind: residual (and the batch's statistics), frozen (and biases) or bare (no affine, no
    gate)."""
    torch.manual_seed(0)
    x = {"x": torch.randn(N, CHANNELS, *SIZE)}
    if op == "conv_bn_act_train":
        return {**x, **_conv("", (CHANNELS, CHANNELS, 3, 3), kind), **_rest(kind, act="silu")}
    project = _conv("project_", (CHANNELS, MID, 1, 1), kind)
    gate = {"gate": _gate(MID, kind)}
    acts = {"gate_act": "relu", "gate_function": "hardsigmoid"}
    if op == "fused_mbconv_train":
        expand = _conv("expand_", (MID, CHANNELS, 3, 3), kind)
        acts = {"expand_act": "gelu", "project_act": "none", **acts}
        return {**x, **expand, **project, **gate, **_rest(kind, **acts)}
    expand = _conv("expand_", (MID, CHANNELS, 1, 1), kind)
    depthwise = _conv("depthwise_", (MID, 1, 3, 3), kind)
    acts = {"expand_act": "hardswish", "depthwise_act": "relu6", "project_act": "none", **acts}
    return {**x, **expand, **depthwise, **project, **gate, **_rest(kind, **acts)}


OPS = ("conv_bn_act_train", "fused_mbconv_train", "mbconv_train")
KINDS = ("residual", "frozen", "bare")


def run(op: str, given: Arguments) -> list[Tensor]:
    return getattr(torch.ops.effv2, op).default(*given.values())


def for_backward(op: str, given: Arguments, some: bool = False) -> Arguments:
    """All gradients that there are, or every other one of them."""
    out, *kept = run(op, given)
    wanted = [True]
    for name, value in given.items():
        if name.endswith(("weight", "bias")):
            wanted.append(value is not None)
        elif name.endswith("affine"):
            wanted += [bool(value)] * 2
    wanted += [True] * len(given.get("gate", ()))
    if some:
        wanted = [want and i % 2 == 1 for i, want in enumerate(wanted)]
    return {"grad": torch.randn_like(out), **given, "kept": kept, "wanted": wanted}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, kind: str) -> None:
    given = arguments(op, kind)
    torch.library.opcheck(getattr(torch.ops.effv2, op).default, tuple(given.values()))


@pytest.mark.parametrize(("kind", "some"), [*((kind, False) for kind in KINDS), ("frozen", True)])
@pytest.mark.parametrize("op", OPS)
def test_opcheck_of_the_backward(op: str, kind: str, some: bool) -> None:
    given = for_backward(op, arguments(op, kind), some)
    backward = getattr(torch.ops.effv2, f"{op}_backward").default
    torch.library.opcheck(backward, tuple(given.values()))
    assert len(backward(*given.values())) == sum(given["wanted"])


@pytest.mark.parametrize("kind", ["residual", "frozen"])
@pytest.mark.parametrize("op", OPS)
def test_no_input_is_changed(op: str, kind: str) -> None:
    def state(given: Arguments) -> list[tuple[Tensor, int]]:
        flat = torch.utils._pytree.tree_leaves(given)
        return [(t.clone(), t._version) for t in flat if isinstance(t, Tensor)]

    given = arguments(op, kind)
    before = state(given)
    backward = for_backward(op, given)
    kept = state(backward)
    run(f"{op}_backward", backward)
    for old, new in ((before, state(given)), (kept, state(backward))):
        assert all(
            torch.equal(a, b) and was == now for (a, was), (b, now) in zip(old, new, strict=True)
        )


def test_an_absent_expansion_is_no_stage() -> None:
    given = arguments("mbconv_train", "residual")
    given.update(
        expand_weight=None, expand_affine=[], depthwise_weight=torch.randn(CHANNELS, 1, 3, 3)
    )
    given["depthwise_affine"] = [torch.ones(CHANNELS), torch.zeros(CHANNELS)]
    given["project_weight"] = torch.randn(CHANNELS, CHANNELS, 1, 1)
    given["gate"] = _gate(CHANNELS, "residual")
    torch.library.opcheck(torch.ops.effv2.mbconv_train.default, tuple(given.values()))


def _changed(**changes: Any) -> Any:
    return lambda given: {**given, **changes}


def _of(name: str, change: Any) -> Any:
    return lambda given: {**given, name: change(given[name])}


WRONG = {
    "rank": (_of("x", lambda x: x[0]), r"x must be \(N, C, H, W\)"),
    "integers": (_of("x", Tensor.int), "x must be float32, float16"),
    "weight's rank": (_of("project_weight", lambda w: w[:, :, 0, 0]), "a weight must be .O, I"),
    "channels": (_of("project_weight", lambda w: w[:, 1:]), "a weight takes 9 channels"),
    "no channels": (_of("depthwise_weight", lambda w: w[:, :0]), "a weight takes"),
    "one of a pair": (_of("project_affine", lambda pair: pair[:1]), "affine must be empty or two"),
    "a vector's length": (
        _of("project_affine", lambda pair: [v[1:] for v in pair]),
        "affine must be",
    ),
    "another device": (_of("project_affine", lambda p: [v.to("meta") for v in p]), "is on meta"),
    "statistics' length": (_changed(project_frozen=[torch.ones(4), torch.ones(4)]), "frozen must"),
    "bias's length": (_changed(depthwise_bias=torch.ones(3)), "bias must be"),
    "mask's length": (_changed(mask=torch.ones(N + 1)), "mask must be"),
    "mask's dtype": (_changed(mask=torch.ones(N, dtype=torch.float64)), "mask is torch.float64"),
    "residual": (_changed(stride=(2, 2)), "residual: x is"),
    "stride": (_changed(stride=(0, 1)), "stride must be two positive"),
    "padding": (_changed(padding=(1, 1)), "padding must be"),
    "window": (_changed(padding=(0, 0, 0, 0), depthwise_weight=torch.ones(MID, 1, 11, 11)), "fit"),
    "activation": (_changed(depthwise_act="tanh"), "act must be one of"),
    "gate's activation": (_changed(gate_act="tanh"), "act must be one of"),
    "gate": (_changed(gate_function="silu"), "gate must be one of"),
    "gate's number": (_of("gate", lambda gate: gate[:3]), "gate must be empty or four"),
    "gate's shape": (_of("gate", lambda g: [g[0][:, 1:], *g[1:]]), "gate must be .3, 10, 1, 1"),
}


@pytest.mark.parametrize("traced", [False, True], ids=["run", "traced"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(wrong: str, traced: bool) -> None:
    change, message = WRONG[wrong]
    given = change(arguments("mbconv_train", "residual"))
    _raises("mbconv_train", given, f"effv2::mbconv_train: .*{message}", traced)


WRONG_BACKWARD = {
    "kept": (_of("kept", lambda kept: kept[1:]), "kept must be 9 tensors, got 8"),
    "gradient's shape": (_of("grad", lambda grad: grad[:, 1:]), "grad must be as the output"),
    "gradient's dtype": (_of("grad", Tensor.double), "grad is torch.float64"),
    "too few flags": (_of("wanted", lambda wanted: wanted[1:]), "wanted must be 17 flags, got 16"),
    "wanted of nothing": (_of("wanted", lambda w: [True] * len(w)), "a gradient is wanted of"),
}


@pytest.mark.parametrize("traced", [False, True], ids=["run", "traced"])
@pytest.mark.parametrize("wrong", WRONG_BACKWARD)
def test_wrong_arguments_of_the_backward(wrong: str, traced: bool) -> None:
    change, message = WRONG_BACKWARD[wrong]
    given = change(for_backward("mbconv_train", arguments("mbconv_train", "residual")))
    _raises("mbconv_train_backward", given, f"effv2::mbconv_train_backward: {message}", traced)


def _raises(op: str, given: Arguments, message: str, traced: bool) -> None:
    if not traced:
        with pytest.raises(RuntimeError, match=message):
            run(op, given)
        return
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=message):
        fake = torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, given)
        run(op, fake)
