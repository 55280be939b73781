"""The tree of a model as links from a module to its children."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def links_of(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(parent, name of the child) of every module below ``module``."""
    for parent in module.modules():
        for name, child in parent._modules.items():
            if child is not None:
                yield parent, name
