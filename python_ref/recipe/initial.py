"""``--init``: a network that begins with the weights of a file."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import weights
from ..model import EfficientNet
from ..weights import StateDict, StateDictError
from .errors import RecipeError
from .extras import extra

#: What weights lie under in a file that holds more, averages first: of ours, timm's, torchvision's.
_NESTED = ("average", "state_dict_ema", "model_ema", "network", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DDP or an average, and of torch.compile
_SHOWN = 3  # tensors of each sort that a message names


def load_initial(
    model: nn.Module, path: str | os.PathLike[str], classes: int, *, reset_classifier: bool
) -> str:
    """Copies the weights of a network of the same variant into ``model``.

    path: a ``.safetensors`` file, one that ``torch.save`` wrote, or a checkpoint of this recipe,
        whose average is taken. A network of python_ref reads the names of timm and torchvision
        too, any other its own library's alone.
    classes: of the data, and of ``model``.
    reset_classifier: where the file has another number of classes, or no classifier at all, the
        model's stays as it is.

    Returns a sentence on what was done. Raises RecipeError for a file that is missing, cut off or
    something else, for another variant, and for another number of classes without
    ``reset_classifier``.
    """
    path = Path(path)
    state = _read(path)
    own, there = _classifiers(model, state)
    found = len(state[f"{there}.weight"]) if f"{there}.weight" in state else None
    fresh = found != classes and (reset_classifier or found is not None)
    if fresh:  # for now, if it may not be: another variant would be the worse news
        live = model.state_dict()
        for tensor in ("weight", "bias"):
            state[f"{there}.{tensor}"] = live[f"{own}.{tensor}"]
    _copy(model, state, path)
    if fresh and not reset_classifier:
        raise RecipeError(
            f"{path} has {found} classes, the data {classes}: --finetune replaces the classifier"
        )
    told = f"weights of {path}"
    return f"{told}, with a new classifier for {classes} classes" if fresh else told


def _read(path: Path) -> StateDict:
    """Raises RecipeError for a file without a state dict."""
    if not path.is_file():
        raise RecipeError(f"--init {path}: there is no such file")
    try:
        # The options that training scripts put beside the weights: plain data.
        with extra("safetensors"), torch.serialization.safe_globals([Namespace]):
            state: Mapping[str, object] = weights.read(path)
    except RecipeError:
        raise
    except Exception as error:  # what it is depends on where a file is cut off
        raise RecipeError(
            f"--init {path} cannot be read: cut off, or no file of weights"
        ) from error
    for key in _NESTED:
        inner = state.get(key)
        if isinstance(inner, Mapping):
            state = inner
            break
    tensors = {_stripped(key): t for key, t in state.items() if isinstance(t, Tensor)}
    tensors.pop("n_averaged", None)  # a counter of PyTorch's AveragedModel
    if not tensors:
        raise RecipeError(f"--init {path} has no state dict in it")
    return tensors


def _stripped(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _classifiers(model: nn.Module, state: StateDict) -> tuple[str, str]:
    """What the classifier is called in the model, and what in the file."""
    if isinstance(model, EfficientNet):
        family = weights.detect(state)
        return "classifier", "classifier.1" if family == "torchvision" else "classifier"
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1], linear[-1]


def _copy(model: nn.Module, state: StateDict, path: Path) -> None:
    try:
        if not isinstance(model, EfficientNet):
            _check(model, state)
            model.load_state_dict(state, strict=False)
            return
        weights.load(model, state)
    except StateDictError as error:
        raise RecipeError(f"--init {path} is of another network: {_differences(error)}") from error


def _check(model: nn.Module, state: StateDict) -> None:
    """As ``weights.load`` does for its own networks."""
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    mismatched = {
        key: (tuple(state[key].shape), tuple(own[key].shape))
        for key in own
        if key in state and state[key].shape != own[key].shape
    }
    if missing or unexpected or mismatched:
        raise StateDictError("the state dict does not fit", missing, unexpected, mismatched)


def _differences(error: StateDictError) -> str:
    shapes = [f"{key} is {got} for {want}" for key, (got, want) in error.mismatched.items()]
    sorts = (("", shapes), ("it lacks ", error.missing), ("it has also ", error.unexpected))
    return "; ".join(
        before + ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        for before, names in sorts
        if names
    )
