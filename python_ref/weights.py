"""Weights from and to timm and torchvision, both ways, by name.

The three libraries build the same network from modules of different names. Written down here is
only which module corresponds to which; the tensors below a pair of modules (weight, bias, running
statistics, ``num_batches_tracked``) have the same names everywhere. Padding and the epsilon of
batch norm are not part of a state dict: choose them in ``create``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .blocks import FusedMBConv, MBConv, SqueezeExcite
from .model import EfficientNet

StateDict = dict[str, Tensor]
Pairs = Iterator[tuple[str, str]]  # module name here, module name there

_SHOWN = 40  # names of each sort in an error message; its attributes have them all


class StateDictError(ValueError):
    """A state dict that does not fit the network.

    Attributes: ``missing`` and ``unexpected`` key names, spelled as in the file; ``mismatched``
    maps a key to (shape in the file, shape in the network).
    """

    def __init__(
        self,
        message: str,
        missing: list[str],
        unexpected: list[str],
        mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
    ) -> None:
        shapes = [f"{key} {got} for {want}" for key, (got, want) in mismatched.items()]
        parts = [message]
        for label, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape", shapes),
        ):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                parts.append(f"{label} ({len(names)}): {', '.join(names[:_SHOWN])}{more}")
        super().__init__("; ".join(parts))
        self.missing = missing
        self.unexpected = unexpected
        self.mismatched = mismatched


def load(model: EfficientNet, source: Mapping[str, Tensor] | str | os.PathLike[str]) -> None:
    """Copies weights into ``model``, from a state dict or from a local file.

    Args:
        model: any network of this package; its dtype and device stay.
        source: a state dict of timm, torchvision or this package (told by its keys), or the path of
            a ``.safetensors`` file or of a file that ``torch.save`` wrote (read with
            ``weights_only=True``, so that it cannot run code).

    A model without a classifier ignores the file's. ``num_batches_tracked`` may be absent, as it is
    from old files; the counters then stay.

    Raises StateDictError, having changed nothing, if keys or shapes do not fit.
    """
    state = dict(source) if isinstance(source, Mapping) else read(source)
    model.load_state_dict(_renamed(model, state, detect(state)))


def read(path: str | os.PathLike[str]) -> StateDict:
    """The state dict in a ``.safetensors`` file or in one written by ``torch.save``."""
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file  # an optional dependency

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict")
    return dict(state)


def detect(state: Mapping[str, Tensor]) -> str:
    """``"timm"``, ``"torchvision"`` or ``"python_ref"``: whose spelling most of the keys have."""
    spellings = {
        "timm": ("conv_stem.", "bn1.", "blocks.", "conv_head.", "bn2."),
        "torchvision": ("features.", "classifier.1."),
        "python_ref": ("stem.", "stages.", "head."),
    }
    return max(
        reversed(spellings),  # of equals, our own
        key=lambda family: sum(str(key).startswith(spellings[family]) for key in state),
    )


def from_timm(model: EfficientNet, state: Mapping[str, Tensor]) -> StateDict:
    """timm's state dict of the same network in this package's names, for ``load_state_dict``."""
    return _renamed(model, state, "timm")


def from_torchvision(model: EfficientNet, state: Mapping[str, Tensor]) -> StateDict:
    """torchvision's state dict of the same network in this package's names."""
    return _renamed(model, state, "torchvision")


def to_timm(model: EfficientNet) -> StateDict:
    """``model``'s state dict in timm's names. It shares the tensors, as ``state_dict`` does."""
    return _exported(model, "timm")


def to_torchvision(model: EfficientNet) -> StateDict:
    """``model``'s state dict in torchvision's names; shares the tensors. Raises ValueError for a
    Fused-MBConv with squeeze-and-excite, which torchvision does not have."""
    return _exported(model, "torchvision")


def _exported(model: EfficientNet, family: str) -> StateDict:
    state = model.state_dict()
    return {theirs: state[ours] for ours, theirs in _key_map(model, family).items()}


def _renamed(model: EfficientNet, state: Mapping[str, Tensor], family: str) -> StateDict:
    """``state`` in our names, after checking that it is complete and fits."""
    own, names = model.state_dict(), _key_map(model, family)
    expected = set(names.values())
    missing = sorted(
        key for key in expected - set(state) if not key.endswith("num_batches_tracked")
    )
    unexpected = sorted(set(state) - expected)
    if model.num_classes == 0:
        unexpected = [key for key in unexpected if not key.startswith("classifier.")]
    mismatched = {
        theirs: (tuple(state[theirs].shape), tuple(own[ours].shape))
        for ours, theirs in names.items()
        if theirs in state and state[theirs].shape != own[ours].shape
    }
    if missing or unexpected or mismatched:
        message = f"the state dict (spelled as {family}'s) does not fit {model.variant.name}"
        raise StateDictError(message, missing, unexpected, mismatched)
    return {ours: state.get(theirs, own[ours]) for ours, theirs in names.items()}


def _key_map(model: EfficientNet, family: str) -> dict[str, str]:
    """Every key of the model's state dict, to that family's key."""
    keys = list(model.state_dict())
    if family == "python_ref":
        return {key: key for key in keys}
    modules = dict(_timm_pairs(model) if family == "timm" else _torchvision_pairs(model))
    renamed = {}
    for key in keys:
        module, _, tensor = key.rpartition(".")
        renamed[key] = f"{modules[module]}.{tensor}"
    return renamed


def _blocks(model: EfficientNet) -> Iterator[tuple[int, int, MBConv | FusedMBConv]]:
    for s, stage in enumerate(model.stages.children()):
        for b, block in enumerate(stage.children()):
            assert isinstance(block, (MBConv, FusedMBConv))
            yield s, b, block


def _timm_pairs(model: EfficientNet) -> Pairs:
    yield from (("stem.conv", "conv_stem"), ("stem.bn", "bn1"))
    for s, b, block in _blocks(model):
        here, there = f"stages.{s}.{b}", f"blocks.{s}.{b}"
        # timm numbers a block's norms in order, and calls a 1x1 projection "pwl" where it has an
        # expansion before it.
        for number, (part, conv) in enumerate(_timm_convs(block), 1):
            yield f"{here}.{part}.conv", f"{there}.{conv}"
            yield f"{here}.{part}.bn", f"{there}.bn{number}"
        if isinstance(block.se, SqueezeExcite):
            yield f"{here}.se.reduce", f"{there}.se.conv_reduce"
            yield f"{here}.se.expand", f"{there}.se.conv_expand"
    yield from (("head.conv", "conv_head"), ("head.bn", "bn2"), ("classifier", "classifier"))


def _timm_convs(block: MBConv | FusedMBConv) -> tuple[tuple[str, str], ...]:
    if isinstance(block, MBConv):
        if block.expand is None:
            return (("depthwise", "conv_dw"), ("project", "conv_pw"))
        return (("expand", "conv_pw"), ("depthwise", "conv_dw"), ("project", "conv_pwl"))
    if block.project is None:
        return (("expand", "conv"),)
    return (("expand", "conv_exp"), ("project", "conv_pwl"))


def _torchvision_pairs(model: EfficientNet) -> Pairs:
    yield from (("stem.conv", "features.0.0"), ("stem.bn", "features.0.1"))
    for s, b, block in _blocks(model):
        here, there = f"stages.{s}.{b}", f"features.{s + 1}.{b}.block"
        # A block is a Sequential of the parts that it has.
        for position, part in enumerate(_torchvision_parts(block)):
            first, second = ("reduce", "expand") if part == "se" else ("conv", "bn")
            inner = ("fc1", "fc2") if part == "se" else ("0", "1")
            yield f"{here}.{part}.{first}", f"{there}.{position}.{inner[0]}"
            yield f"{here}.{part}.{second}", f"{there}.{position}.{inner[1]}"
    head = f"features.{len(model.stages) + 1}"
    yield from (("head.conv", f"{head}.0"), ("head.bn", f"{head}.1"))
    yield "classifier", "classifier.1"


def _torchvision_parts(block: MBConv | FusedMBConv) -> list[str]:
    if isinstance(block, FusedMBConv):
        if isinstance(block.se, SqueezeExcite):
            raise ValueError("torchvision's Fused-MBConv has no squeeze-and-excite")
        return ["expand"] + (["project"] if block.project is not None else [])
    expand = [] if block.expand is None else ["expand"]
    se = ["se"] if isinstance(block.se, SqueezeExcite) else []
    return [*expand, "depthwise", *se, "project"]
