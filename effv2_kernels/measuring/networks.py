"""The network that a command runs: from which library, with which weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from python_ref import weights as checkpoints

LIBRARIES = ("timm", "torchvision", "python_ref")


class NetworkError(Exception):
    """No such network, or weights that do not fit it; the text is one line for the user."""


@dataclass
class Network:
    """A network in eval mode. ``weights`` says where they come from, in words."""

    model: nn.Module
    library: str
    name: str
    weights: str
    trained: bool

    @property
    def title(self) -> str:
        return f"{self.library} {self.name}"


def build(name: str, library: str | None = None, weights: str | None = None) -> Network:
    """A network by timm's name for it, with the weights of a file or with seeded random ones.

    library: one of LIBRARIES; None takes timm if it is installed, else torchvision.
    Raises NetworkError.
    """
    library = library or _installed()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            name, model = _create(library, name)
        except (ImportError, ValueError, RuntimeError) as error:
            raise NetworkError(f"{library} gives no {name}: {error}") from error
    source = "random (seed 0)"
    if weights is not None:
        _load(model, weights)
        source = weights
    return Network(model.eval(), library, name, source, weights is not None)


def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give every batch norm the statistics of these images.

    Random weights with default statistics let activations die out or explode, and then agreement
    says nothing. Only the buffers of the norms change.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def reference(network: Network) -> nn.Module | None:
    """The same network with the same weights from ``python_ref``; None if it has no such."""
    import python_ref

    first_norm = next(m for m in network.model.modules() if isinstance(m, nn.BatchNorm2d))
    name = network.name.replace("efficientnet_v2_", "efficientnetv2_")
    try:
        model = python_ref.create(
            name.removeprefix("tf_").split(".")[0],
            padding="same" if name.startswith("tf_") else "symmetric",
            bn_eps=first_norm.eps,
        )
        checkpoints.load(model, network.model.state_dict())
    except ValueError:  # a name or a state dict that is not of the paper
        return None
    return model.eval()


def _installed() -> str:
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is not None:
            return library
    raise AssertionError("python_ref is part of this distribution")


def _create(library: str, name: str) -> tuple[str, nn.Module]:
    if library == "timm":
        import timm

        return name, timm.create_model(name, pretrained=False)
    if library == "torchvision":
        import torchvision

        name = name.replace("efficientnetv2_", "efficientnet_v2_")
        return name, torchvision.models.get_model(name, weights=None)
    import python_ref

    return name, python_ref.create(name)


def _load(model: nn.Module, path: str) -> None:
    try:
        model.load_state_dict(checkpoints.read(path))
    except Exception as error:  # unreadable, not a state dict, of another network
        lines = str(error).splitlines() or [type(error).__name__]
        shown = " ".join(line.strip() for line in lines[:3])
        raise NetworkError(f"{path} does not fit: {shown[:400]}") from error
