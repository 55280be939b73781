"""Networks by name, from python_ref, timm or torchvision, and what each wants of its images."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from .. import factory
from ..variants import VARIANTS, Variant, find
from .errors import RecipeError
from .extras import extra
from .initial import load_initial

if TYPE_CHECKING:
    from .loader import Statistics
    from .transforms import Rule

__all__ = [
    "create",
    "evaluation_rule",
    "evaluation_size",
    "load_initial",
    "normalisation",
    "schedule_network",
    "training_size",
]

_LARGE = ("s", "m", "l", "xl")  # of V2: what is not scaled from B0
_USUAL_SIZE = 224  # pixels, of networks that do not say


def create(
    name: str, classes: int, *, drop_path: float | None = None, dropout: float | None = None
) -> nn.Module:
    """A network with random weights.

    name: of python_ref (``"efficientnetv2_s"``, ``"s"``, ``"efficientnet_b0"``), or of a library:
        ``"timm:NAME"``, ``"torchvision:NAME"``.
    drop_path, dropout: rates of stochastic depth and before the classifier; None takes the
        library's own. A network that knows no such thing can be made with 0 and None.
    Raises RecipeError for a name that is not there, naming similar ones, and for rates that the
    network cannot have.
    """
    library, bare = _parted(name)
    if library not in _LIBRARIES or not _LIBRARIES[library].has(bare):
        raise RecipeError(_unknown(name))
    build = partial(_LIBRARIES[library].build, bare, num_classes=classes)
    rates = zip(_LIBRARIES[library].rates, (drop_path, dropout), strict=True)
    wanted = {key: rate for key, rate in rates if rate is not None}
    try:
        return build(**wanted)
    except TypeError as error:
        if any(wanted.values()):
            raise RecipeError(
                f"--model {name} has no drop paths or no dropout, set them to 0: {error}"
            ) from error
        return build()
    except ValueError as error:
        raise RecipeError(f"--model {name} cannot be made: {error}") from error


def schedule_network(name: str) -> str | None:
    """Which of ``paper.NETWORKS`` it is, whatever the library; None for any other."""
    variant = _variant(name)
    if variant is None or not variant.name.startswith("efficientnetv2_"):
        return None
    return variant.name.removeprefix("efficientnetv2_")


def normalisation(name: str) -> Statistics:
    """How pixels come near zero: to -1 to 1 for V2 S, M, L and XL, by ImageNet's statistics for
    the rest; torchvision's weights of S and M want the latter, too."""
    if _parted(name)[0] == "torchvision" and schedule_network(name) in ("s", "m"):
        return "imagenet"
    return "half" if schedule_network(name) in _LARGE else "imagenet"


def evaluation_rule(name: str) -> Rule:
    """``"official"``, that of V2 S, M, L and XL, or ``"legacy"``: a crop whatever the size."""
    return "official" if schedule_network(name) in _LARGE else "legacy"


def evaluation_size(name: str) -> int:
    """Pixels of the images that it is tested on."""
    variant = _variant(name)
    return variant.eval_size if variant is not None else _configured_size(name, "test_input_size")


def training_size(name: str) -> int:
    """Pixels of the largest images that it is trained on."""
    variant = _variant(name)
    return variant.train_size if variant is not None else _configured_size(name, "input_size")


def _configured_size(name: str, field: str) -> int:
    """As timm has it for its network, or the usual one."""
    library, bare = _parted(name)
    if library != "timm":
        return _USUAL_SIZE
    configuration = _timm().get_pretrained_cfg(bare)
    size = configuration and (getattr(configuration, field) or configuration.input_size)
    return size[-1] if size else _USUAL_SIZE


def _variant(name: str) -> Variant | None:
    """Of this paper or the one before it, however the library spells it."""
    library, bare = _parted(name)
    if library == "timm":
        bare = bare.partition(".")[0].removeprefix("tf_")  # without the tag of its weights
    try:
        return find(bare)
    except ValueError:
        return None


def _parted(name: str) -> tuple[str, str]:
    """Library and the name there."""
    library, colon, bare = name.partition(":")
    return (library, bare) if colon else ("python_ref", name)


def _unknown(name: str) -> str:
    """What to say of a name, with what is spelled much like it."""
    known = []
    for library, made in _LIBRARIES.items():
        # One that is not installed has nothing to propose.
        with suppress(RecipeError):
            prefix = "" if library == "python_ref" else f"{library}:"
            known += [f"{prefix}{each}" for each in made.names()]
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    # The same name elsewhere is nearer than any other spelling.
    same = [each for each in known if _parted(each)[1] == _parted(name)[1]]
    meant = ", ".join(dict.fromkeys([*same, *near]))
    return f"--model {name}: there is no such network" + (f"; near it: {meant}" if meant else "")


@dataclass(frozen=True)
class _Library:
    """names: of its networks. has: whether it knows one, by an alias or with a tag too. build:
    makes one, given ``num_classes``. rates: how it calls those of drop paths and of dropout. The
    functions raise RecipeError where it is not installed."""

    names: Callable[[], Collection[str]]
    has: Callable[[str], bool]
    build: Callable[..., nn.Module]
    rates: tuple[str, str]


def _own_names() -> Collection[str]:
    return (*VARIANTS, *(name.removeprefix("efficientnetv2_") for name in VARIANTS))


def _timm() -> Any:
    with extra():
        import timm
    return timm


def _torchvision_models() -> Any:
    with extra():
        from torchvision import models
    return models


def _torchvision_names() -> Collection[str]:
    models = _torchvision_models()
    return models.list_models(module=models)  # classifiers alone


_LIBRARIES = {
    "python_ref": _Library(
        _own_names,
        lambda name: _variant(name) is not None,
        factory.create,
        ("drop_path", "dropout"),
    ),
    "timm": _Library(
        lambda: _timm().list_models(),
        lambda name: _timm().is_model(name),
        lambda name, **keywords: _timm().create_model(name, **keywords),
        ("drop_path_rate", "drop_rate"),
    ),
    "torchvision": _Library(
        _torchvision_names,
        lambda name: name in _torchvision_names(),
        lambda name, **keywords: _torchvision_models().get_model(name, weights=None, **keywords),
        ("stochastic_depth_prob", "dropout"),
    ),
}
