"""How EfficientNetV2 was trained: schedules and recipes, the paper's and the official code's.

Source: EfficientNetV2 (arXiv 2104.00298) sections 4 and 5, table 6; the official code is
google/automl, ``efficientnetv2/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

from .errors import RecipeError
from .options import Name, Recipe, option
from .schedule import Policy, Regularisation, Schedule, Source, fixed, progressive


@dataclass(frozen=True)
class _Values:
    """Of one network: the first and last size and regularisation."""

    sizes: tuple[int, int]
    weak: Regularisation
    strong: Regularisation
    policy: Policy = "randaugment"


def _table6(size: int, magnitude: float, mixup: float, dropout: float) -> _Values:
    """A column of table 6. The paper mixes by mixup alone."""
    weak = Regularisation(5.0, 0.0, 0.0, 0.1)
    return _Values((128, size), weak, Regularisation(magnitude, mixup, 0.0, dropout))


def _code(size: int, magnitude: float, mix: float, dropout: float) -> _Values:
    """As the official configuration has it: CutMix as strong as mixup, dropout always the same."""
    weak = Regularisation(5.0, 0.0, 0.0, dropout)
    return _Values((128, size), weak, Regularisation(magnitude, mix, mix, dropout))


def _compound(first: int, last: int, dropout: float) -> _Values:
    """V2-B0 to B3: AutoAugment, and no mixing."""
    always = Regularisation(dropout=dropout)
    return _Values((first, last), always, always, "autoaugment")


#: Table 6; XL, which it does not have, as L. B0 to B3 were trained without progressive learning.
_PAPER = {
    "s": _table6(300, 15.0, 0.0, 0.3),
    "m": _table6(380, 20.0, 0.2, 0.4),
    "l": _table6(380, 25.0, 0.5, 0.5),
    "xl": _table6(380, 25.0, 0.5, 0.5),
    "b0": _compound(192, 192, 0.2),
    "b1": _compound(192, 192, 0.2),
    "b2": _compound(208, 208, 0.3),
    "b3": _compound(240, 240, 0.3),
}
_OFFICIAL = {
    "s": _code(300, 10.0, 0.0, 0.2),
    "m": _code(384, 15.0, 0.2, 0.3),
    "l": _code(384, 20.0, 0.5, 0.4),
    "xl": _code(384, 20.0, 0.5, 0.4),
    "b0": _compound(128, 192, 0.2),
    "b1": _compound(128, 192, 0.2),
    "b2": _compound(128, 208, 0.3),
    "b3": _compound(128, 240, 0.3),
}
NETWORKS: Sequence[str] = tuple(_PAPER)


def preset(
    network: str,
    source: Source = "paper",
    epochs: float = 350.0,
    *,
    stages: int | None = None,
    min_size: int | None = None,
    max_size: int | None = None,
    multiple: int = 1,
    adaptive: bool = True,
    random_resize: float | None = None,
    seed: int = 0,
    **strong: float,
) -> Schedule:
    """The schedule of one of NETWORKS (``"s"`` or ``"efficientnetv2_s"``) on ImageNet-1k.

    stages, min_size (table 14) and max_size replace the preset's: four, or one for the paper's B0
    to B3. So does ``strong``, of the last stage's regularisation by its fields; no other stage's is
    stronger. The others as in ``progressive``. Raises RecipeError.
    """
    short = network.removeprefix("efficientnetv2_")
    values = {"paper": _PAPER, "official": _OFFICIAL}[source].get(short)
    if values is None:
        raise RecipeError(f"no schedule for {network!r}: there is one for {', '.join(NETWORKS)}")
    last = max_size or values.sizes[1]
    first = min_size or min(values.sizes[0], last)
    end = replace(values.strong, **strong)
    begin = Regularisation(*map(min, astuple(values.weak), astuple(end)))
    return progressive(
        f"{short} ({source})",
        (first, last),
        (begin, end),
        epochs,
        source=source,
        stages=(1 if first == last else 4) if stages is None else stages,
        multiple=multiple,
        adaptive=adaptive,
        random_resize=random_resize,
        seed=seed,
        policy="randaugment" if "magnitude" in strong else values.policy,
    )


def imagenet1k(source: Source = "paper") -> dict[str, Any]:
    """Training from random weights: the fields' own values."""
    return {}


def imagenet21k(source: Source = "paper") -> dict[str, Any]:
    """60 epochs by a cosine. The official code trains at one size with no regularisation at all;
    the paper only says that labels of an image are made probabilities."""
    return {
        "epochs": 60.0,
        "lr": 0.008,
        "decay": "cosine",
        "warmup_epochs": 1.0,
        "label_smoothing": 0.0,
        **({"drop_path": 0.0, "stages": 1, "max_size": 224} if source == "official" else {}),
    }


def finetune(source: Source = "paper") -> dict[str, Any]:
    """15 epochs of 512 images a step at a peak rate of 0.001, cutout only. The paper lets the rate
    fall by a cosine and has no weight decay; the official code keeps both as they are. Both train
    for 10,000 steps at least, which small data take more epochs for (``--epochs``)."""
    return {
        "finetune": True,
        "epochs": 15.0,
        "batch": 512,
        "lr": 0.0005,
        "warmup_epochs": 1.0,
        "ema": 0.9996,
        "stages": 1,
        "crop": False,
        "cutout": True,
        **(
            {"decay": "cosine", "weight_decay": 0.0} if source == "paper" else {"decay": "constant"}
        ),
    }


_PRESETS = {"imagenet1k": imagenet1k, "imagenet21k": imagenet21k, "finetune": finetune}


def recipe_of(name: Name, **given: Any) -> Recipe:
    """One of the recipes, with the values that are given in place of its own. Raises
    RecipeError."""
    return Recipe(**{"recipe": name, **_PRESETS[name](given.get("preset", "paper")), **given})


def make_schedule(recipe: Recipe, network: str | None, size: int, test_size: int) -> Schedule:
    """The schedule of a recipe.

    network: one of NETWORKS whose preset is taken, or None: then S's regularisation up to ``size``
        pixels, the network's own training size. test_size: its evaluation size, at which the
        official code fine-tunes, in multiples of 16.
    Raises RecipeError.
    """
    _check(recipe)
    if recipe.schedule is not None:
        made = Schedule.load(recipe.schedule)
    elif _is_plain(recipe):
        # What is left of regularisation there does not change.
        one = recipe.max_size or test_size // 16 * 16
        rates = Regularisation(**_chosen(recipe))
        policy: Policy = "randaugment" if rates.magnitude else "none"
        made = fixed(f"{recipe.recipe} ({recipe.preset})", one, rates, recipe.epochs, policy)
    else:
        made = preset(
            network or "s",
            recipe.preset,
            recipe.epochs,
            stages=recipe.stages,
            min_size=recipe.min_size,
            max_size=recipe.max_size or (None if network else size),
            multiple=recipe.size_multiple,
            adaptive=recipe.adaptive,
            random_resize=recipe.random_resize,
            seed=recipe.seed,
            **_chosen(recipe),
        )
    # A schedule of a file has batches of its own.
    return made.with_larger_batches(recipe.grow_batch) if recipe.grow_batch > 1.0 else made


def choose_test_size(recipe: Recipe, schedule: Schedule, size: int, test_size: int) -> int:
    """Pixels of evaluation. What trains at one size is evaluated at it; another largest size in
    training than the network's own ``size`` changes its ``test_size`` in proportion."""
    if recipe.test_size is not None:
        return recipe.test_size
    if _is_plain(recipe):
        return schedule.stages[-1].size
    return test_size if recipe.max_size is None else round(test_size * recipe.max_size / size)


def _is_plain(recipe: Recipe) -> bool:
    """Whether it is a recipe of one size without progressive learning."""
    official = recipe.preset == "official"
    return recipe.recipe == "finetune" or (recipe.recipe == "imagenet21k" and official)


def _check(recipe: Recipe) -> None:
    """Options that would do nothing."""
    one = _is_plain(recipe) or recipe.stages == 1
    idle = ("min_size", "random_resize") if one else ()
    for name in idle:
        if getattr(recipe, name) is not None:
            raise RecipeError(f"{option(name)} does nothing in a schedule of one stage")
    if _is_plain(recipe) and recipe.stages != 1:
        raise RecipeError(f"--stages {recipe.stages}: the recipe {recipe.recipe} has one")


def _chosen(recipe: Recipe) -> dict[str, float]:
    """The last stage's regularisation, as far as the recipe says it."""
    values = {field.name: getattr(recipe, field.name) for field in fields(Regularisation)}
    return {name: value for name, value in values.items() if value is not None}
