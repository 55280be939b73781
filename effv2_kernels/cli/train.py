"""``python -m effv2_kernels train``: the paper's recipe on a folder of images, patched."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_type_hints

from torch import nn

import effv2_kernels as ek
from python_ref.recipe import paper
from python_ref.recipe.errors import RecipeError
from python_ref.recipe.options import Recipe, option


def arguments(parser: argparse.ArgumentParser) -> None:
    """An option for every field of ``Recipe``."""
    parser.add_argument(
        "data",
        metavar="DIR",
        help="class folders (also in train/ and val/), metadata.csv, *.tar shards, "
        "torchvision:NAME, or digits",
    )
    parser.add_argument("--dataset21k", action="store_true", help="as --recipe imagenet21k")
    parser.add_argument("--no-patch", dest="patch", action="store_false", help="plain PyTorch")
    parser.add_argument("--device", help="cuda or cpu (a GPU if there is one)")
    types = get_type_hints(Recipe)
    for one in fields(Recipe):
        settings = _settings(types[one.name])
        shown = "" if one.default in (None, False, MISSING) else f" ({one.default})"
        # Only what was given is known apart from the preset's value.
        parser.add_argument(
            option(one.name),
            default=argparse.SUPPRESS,
            help=f"{one.metadata['help']}{shown}".replace("%", "%%"),
            **settings,
        )


def _settings(kind: Any) -> dict[str, Any]:
    """How argparse reads a field of a type, which may be None too."""
    kinds = [k for k in get_args(kind) if k is not type(None)] or [kind]
    if bool in kinds:
        return {"action": argparse.BooleanOptionalAction}
    literals = [k for k in (kind, *kinds) if getattr(k, "__origin__", None) is Literal]
    if literals:
        return {"choices": get_args(literals[0])}
    if isinstance(kinds[0], str):
        return {"choices": kinds}
    return {"type": kinds[0], "metavar": {int: "N", float: "X", str: "S"}[kinds[0]]}


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The preset that the options ask for, with what they say in place of its values. Raises
    RecipeError."""
    given = {f.name: getattr(options, f.name) for f in fields(Recipe) if f.name in options}
    name = given.pop("recipe", "imagenet1k")
    if given.get("finetune") and options.dataset21k:
        raise RecipeError("--finetune and --dataset21k are two recipes: take one")
    if given.get("finetune") or options.dataset21k:
        name = "finetune" if given.get("finetune") else "imagenet21k"
    return paper.recipe_of(name, **given)


def run(options: argparse.Namespace) -> int:
    try:
        from python_ref.recipe.run import run as train

        result = train(
            recipe_of(options),
            options.data,
            device=options.device,
            prepare=_patched if options.patch else None,
        )
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not result.finished and os.environ.get("RANK", "0") == "0":
        print(f"Stopped at step {result.steps}. To go on: {_command(sys.argv[1:])}")
    return 0


def _command(given: Sequence[str]) -> str:
    """The same again, from the newest checkpoint."""
    kept = [word for word in given if not word.startswith("--resume=")]
    if "--resume" in kept:
        at = kept.index("--resume")
        del kept[at : at + 2]
    launcher = "torchrun ... -m" if "RANK" in os.environ else "python -m"
    return f"{launcher} effv2_kernels {shlex.join(kept)}"


def _patched(model: nn.Module) -> str:
    report = ek.patch(model)
    trained = sum(bool(entry.training) for entry in report.patched)
    return (
        f"effv2_kernels: {len(report.patched)} blocks patched, {report.coverage:.0%} of the"
        f" multiply-adds; {trained} of them in training too, where the device has kernels for it"
    )
