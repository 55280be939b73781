"""Everything that can be chosen about a training, as one frozen dataclass, and the paper's choices.

The command line is made from these fields: a field's name is its option, its help is here.

Source: EfficientNetV2 (arXiv 2104.00298) sections 4 and 5, and the official hyperparameters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from .errors import RecipeError
from .schedule import SMALLEST, Source

Name = Literal["imagenet1k", "imagenet21k", "finetune"]
Optimizer = Literal["rmsproptf", "sgd", "adamw"]
Decay = Literal["exponential", "cosine", "constant"]
Precision = Literal["bf16", "fp16", "no"]
Decoder = Literal["pil", "tv", "dali"]


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Recipe:
    """What None stands for is said with each field; ``resolved`` puts the values in its place."""

    model: str = _option(
        "efficientnetv2_s", "network: of python_ref, timm:NAME or torchvision:NAME"
    )

    recipe: Name = _option("imagenet1k", "whose values all options have that are not given")

    # What changes while it trains.
    preset: Source = _option("paper", "whose schedule: the paper's or the official code's")
    schedule: str | None = _option(None, "a schedule saved as JSON, in place of the preset")
    epochs: float = _option(350.0, "passes over the data")
    stages: int | None = _option(None, "of progressive learning; 1 for none (preset: 4)")
    min_size: int | None = _option(None, "pixels of the first stage (preset: 128)")
    max_size: int | None = _option(None, "pixels of the last stage (preset: the network's)")
    size_multiple: int = _option(1, "sizes are rounded to multiples of it")
    adaptive: bool = _option(True, "regularisation grows with the size (table 13)")
    magnitude: float | None = _option(None, "of RandAugment in the last stage (preset's)")
    mixup: float | None = _option(None, "its alpha in the last stage (preset's)")
    cutmix: float | None = _option(None, "its alpha in the last stage (preset's)")
    dropout: float | None = _option(None, "before the classifier in the last stage (preset's)")
    random_resize: float | None = _option(None, "another random size every so many epochs")
    grow_batch: float = _option(1.0, "batches grow up to so many times while images are small")

    # The optimizer.
    optimizer: Optimizer = _option("rmsproptf", "timm's RMSprop as in TensorFlow, or PyTorch's")
    batch: int | None = _option(None, "images a step, of all processes (4096, less for small data)")
    device_batch: int | None = _option(
        None, "images at once in a process; more are accumulated (GPU 128, CPU 32)"
    )
    lr: float = _option(0.016, "learning rate for 256 images a step; it grows with the batch")
    warmup_epochs: float = _option(5.0, "in which the learning rate rises from zero")
    decay: Decay = _option("exponential", "of the learning rate")
    decay_rate: float = _option(0.97, "of an exponential decay, once every --decay-epochs")
    decay_epochs: float = _option(2.4, "between two steps of an exponential decay")
    momentum: float = _option(0.9, "of rmsproptf and sgd")
    alpha: float = _option(0.9, "how slowly rmsproptf's averages of squares move")
    epsilon: float = _option(1e-3, "of rmsproptf, within the root")
    weight_decay: float = _option(1e-5, "on weights only")
    clip: float | None = _option(None, "the gradients' norm at most (none)")
    ema: float = _option(0.9999, "decay of the moving average that is evaluated and kept")

    # Regularisation that stays as it is.
    label_smoothing: float = _option(0.1, "of the targets")
    bn_momentum: float | None = _option(
        None, "of the norms' statistics (0.1, the official code's; the paper says 0.01)"
    )
    drop_path: float = _option(0.2, "stochastic depth of the last block; the first has none")
    min_area: float | None = _option(
        None, "share of an image that a random crop takes at least (0.05; B0 to B3, V1: 0.08)"
    )
    crop: bool = _option(True, "random crops; without, the whole image is squashed")
    flip: float = _option(0.5, "share of the images that are mirrored")
    erase: float = _option(0.0, "share of the images from which a random rectangle is erased")
    cutout: bool = _option(False, "a square of every image is erased")

    # Data.
    validation: str | None = _option(None, "data to evaluate on, where DIR has none")
    holdout: float | None = _option(
        None, "share of DIR that is kept to evaluate on (0.1, where there is nothing else)"
    )
    loader: Decoder = _option("pil", "what decodes images")
    workers: int | None = _option(
        None, "processes that make images (the machine's cores, at most 16)"
    )
    broken: float = _option(0.01, "share of unreadable images that stops the run")

    # Evaluation and files.
    test_size: int | None = _option(None, "pixels of evaluation (the network's)")
    evaluate_every: float = _option(1.0, "epochs between two evaluations")
    save_minutes: float = _option(10.0, "between two checkpoints")
    save_steps: int | None = _option(None, "steps between two checkpoints (none)")
    output: str = _option("training", "folder for checkpoints, logs and pictures")
    resume: str = _option("auto", "auto (the newest checkpoint of --output), a file, or no")
    init: str | None = _option(None, "weights to begin with (.safetensors or .pth)")
    finetune: bool = _option(False, "a new classifier on top of --init")
    wall_minutes: float | None = _option(None, "stops with a checkpoint after so long")

    # How it runs.
    amp: Precision | None = _option(None, "16-bit arithmetic (GPU bf16, CPU no)")
    compile: bool = _option(False, "torch.compile")
    fsdp: bool = _option(False, "shard the network among the processes, in place of DDP")
    deterministic: bool = _option(False, "the same bits in every run")
    seed: int = _option(0, "of everything random")

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "decay_epochs", "evaluate_every", "save_minutes"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"{option(name)} must be above 0, got {getattr(self, name)}")
        for name in ("batch", "device_batch", "save_steps", "stages", "size_multiple"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{option(name)} must be at least 1, got {value}")
        for name in ("ema", "label_smoothing", "drop_path", "flip", "erase", "broken"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise RecipeError(f"{option(name)} must be 0 to 1, got {getattr(self, name)}")
        if self.warmup_epochs < 0 or self.grow_batch < 1.0:
            raise RecipeError("--warmup-epochs must be at least 0 and --grow-batch at least 1")
        for name in ("clip", "min_area", "alpha", "wall_minutes", "bn_momentum", "decay_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RecipeError(f"{option(name)} must be above 0, got {value}")
        for name in ("min_area", "bn_momentum", "dropout", "momentum"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= (0.99 if name == "dropout" else 1.0):
                raise RecipeError(f"{option(name)} must be 0 to 1 (dropout: 0.99), got {value}")
        if self.workers is not None and self.workers < 0:
            raise RecipeError(f"--workers must be at least 0, got {self.workers}")
        if self.test_size is not None and self.test_size < SMALLEST:
            raise RecipeError(f"--test-size {self.test_size} is too small: at least {SMALLEST}")
        if self.finetune and self.init is None and self.resume in ("auto", "no"):
            raise RecipeError("--finetune needs --init FILE: the weights to begin with")

    def __str__(self) -> str:
        """Every value, a line each."""
        width = max(len(f.name) for f in fields(self))
        return "\n".join(f"  {name:<{width}}  {value}" for name, value in asdict(self).items())


def option(name: str) -> str:
    """``--save-minutes`` for ``save_minutes``."""
    return "--" + name.replace("_", "-")


def resolved(recipe: Recipe, images: int, *, world: int, cuda: bool, cores: int) -> Recipe:
    """The recipe without None where a value is needed.

    images: of the training data. A batch is the paper's 4096, or the largest power of two that
    leaves twenty steps an epoch, rounded to what the processes share. cores: that each process may
    use.
    """
    batch = recipe.batch or min(4096, 2 ** max(3, (images // 20).bit_length() - 1))
    device_batch = recipe.device_batch or (128 if cuda else 32)
    if recipe.batch is None:
        batch = max(world, batch // world * world)
    return replace(
        recipe,
        batch=batch,
        device_batch=device_batch,
        workers=min(16, max(1, cores)) if recipe.workers is None else recipe.workers,
        amp=recipe.amp or ("bf16" if cuda else "no"),
    )


def accumulation(recipe: Recipe, world: int) -> int:
    """Into how many parts a process cuts its share of a step: the fewest that divide it and fit
    ``device_batch``. Raises RecipeError for a batch that the processes cannot share."""
    assert recipe.batch is not None and recipe.device_batch is not None
    share, rest = divmod(recipe.batch, world)
    if rest or share < 1:
        raise RecipeError(
            f"--batch {recipe.batch} cannot be shared by {world} processes: "
            f"take a multiple of {world}"
        )
    most = recipe.device_batch
    parts = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= most)
    if parts > 1 and share // parts < most / 2:
        near = world * most * max(1, round(share / most))
        raise RecipeError(
            f"--batch {recipe.batch} falls into parts of {share // parts} images, far below the"
            f" {most} of --device-batch: take {near}, or another --device-batch"
        )
    return parts
