"""A training that takes a second: few small images, a network of five blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from python_ref.recipe.groups import Group
from python_ref.recipe.logs import Log
from python_ref.recipe.loop import Data, Trainer, stream_of
from python_ref.recipe.options import Recipe
from python_ref.recipe.schedule import Regularisation, Schedule, progressive
from python_ref.recipe.transforms import Making
from tests.training.few_blocks import FEW, python_ref_network

CLASSES = 10
ALONE = Group(0, 1, torch.device("cpu"))


class Stripes:
    """Images whose class is the direction of their stripes."""

    name = "stripes"
    several = False
    classes = tuple(str(c) for c in range(CLASSES))

    def __init__(self, images: int = 40, size: int = 40) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return self.images

    def labels(self, index: int) -> tuple[int, ...]:
        return (index % CLASSES,)

    def where(self, index: int) -> str:
        return f"stripes/{index}"

    def read(self, index: int) -> Image.Image:
        angle = np.pi * (index % CLASSES) / CLASSES
        y, x = np.mgrid[: self.size, : self.size]
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / 2 + index)
        noise = np.random.default_rng(index).normal(0, 20, wave.shape)
        pixels = np.clip(128 + 90 * wave + noise, 0, 255).astype(np.uint8)
        return Image.fromarray(pixels).convert("RGB")


def write_stripes(folder: Path, images: int = 40) -> Path:
    """As class folders of PNG files."""
    source = Stripes(images)
    for index in range(images):
        path = folder / f"class{source.labels(index)[0]}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        source.read(index).save(path)
    return folder


def schedule(epochs: float = 3.0, stages: int = 3) -> Schedule:
    """32 to 48 pixels with everything that may change between stages."""
    weak = Regularisation(2.0, 0.0, 0.0, 0.1)
    strong = Regularisation(8.0, 0.2, 0.2, 0.3)
    return progressive("small", (32, 48), (weak, strong), epochs, stages=stages)


def recipe(**values: Any) -> Recipe:
    """Resolved, for ``Stripes``."""
    usual = {
        "model": "small",
        "epochs": 3.0,
        "batch": 8,
        "device_batch": 8,
        "workers": 0,
        "amp": "no",
        "lr": 0.05,
        "warmup_epochs": 1.0,
        "ema": 0.9,
        "output": "nowhere",
        "save_minutes": 1e9,
        "evaluate_every": 100.0,
    }
    return Recipe(**{**usual, **values})


def trainer(
    chosen: Recipe,
    *,
    of: Schedule | None = None,
    output: Path | None = None,
    group: Group = ALONE,
    network: Callable[[], nn.Module] = lambda: python_ref_network(FEW, drop_path=0.3),
    source: Stripes | None = None,
    log: Log | None = None,
    validation_images: int = 20,
    **settings: Any,
) -> Trainer:
    of = schedule(chosen.epochs) if of is None else of
    training = Stripes() if source is None else source
    data = Data(training, Stripes(validation_images), Making(min_area=0.5), "half", "official", 48)
    torch.manual_seed(1)
    if log is None:
        steps = stream_of(chosen, of, len(training), group.world).total_steps()
        log = Log(None, of, title="small", begin=0, total_steps=steps, quiet=True)
    return Trainer(network(), chosen, of, data, group, log, output=output, **settings)
