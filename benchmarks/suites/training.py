"""A training step, its parts apart: ``train``; and what it keeps for the backward: ``memory``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effv2_kernels.measuring import networks
from effv2_kernels.measuring.agreement import TINY, relative_error
from effv2_kernels.measuring.timing import Quantiles, paired_ratio, quantiles, synchronize, timed

from .. import implementations, measure, results
from ..catalogue import Entry, find
from ..implementations import EAGER, TRAINING, WrongOutput
from ..options import Options
from ..results import Row

NETWORKS = ("efficientnetv2_s", "efficientnetv2_m", "efficientnetv2_l", "efficientnet_b7")
PARTS = ("forward", "backward", "optimizer")
BASELINES = ("eager_nchw", "eager_nhwc", "compile_default")
FIXED_BATCH = 32
_CHECKED = 4


@dataclass
class Step:
    """One training step of a model that lives on, in three parts."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    context: AbstractContextManager

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        self.loss = torch.zeros(())

    def forward(self) -> Tensor:
        with self.context:
            self.loss = F.cross_entropy(self.model(self.images), self.labels)
        return self.loss

    def backward(self) -> None:
        self.loss.backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self) -> Tensor:
        loss = self.forward()
        self.backward()
        self.update()
        return loss


def train(options: Options) -> Iterator[list[Row]]:
    """Each part of a step, throughput and peak memory; with a fixed batch and, on a GPU, with the
    largest power of two that fits eager PyTorch."""
    for entry, dtype in _cases(options):
        resolution = _resolution(entry, options)
        if not options.budget.allows(f"training {entry.title}, {dtype}"):
            continue
        for batch in options.batch or _batches(entry, resolution, dtype, options):
            rows = partial(_train, entry, resolution, batch, dtype, options)
            yield measure.case(f"training {entry.title}, batch {batch}, {dtype}", options, rows)


def memory(options: Options) -> Iterator[list[Row]]:
    """Activations that autograd keeps for the backward, for one image; each storage once."""
    for entry, dtype in _cases(options):
        rows = partial(_memory, entry, _resolution(entry, options), dtype, options)
        yield measure.case(f"memory of {entry.title}, {dtype}", options, rows)


def _memory(entry: Entry, resolution: int, dtype: str, options: Options) -> Iterator[Row]:
    """From the difference of two batches: autocast keeps its casts of the weights, too."""
    batch = (options.batch or (2,))[0]
    row = _row("memory", entry, batch, resolution, dtype, options.device)
    model = trainable(entry)
    for name in options.impl or ("eager_nchw", "effv2"):
        more, less = (
            kept_for_backward(make_step(name, model, resolution, n, dtype, options.device))
            for n in (2 * batch, batch)
        )
        yield row(name, "kept_for_backward", "MB/image", quantiles([(more - less) / batch / 1e6]))


def make_step(
    name: str,
    model: nn.Module,
    resolution: int,
    batch: int,
    dtype: str,
    device: torch.device,
) -> Step:
    kind, context = implementations.precision(dtype, device)
    random = torch.Generator(device).manual_seed(1)
    shape = batch, 3, resolution, resolution
    images = torch.randn(shape, generator=random, device=device).to(kind)
    if name != "eager_nchw":
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), generator=random, device=device)
    trained = implementations.training(name, model.to(device, kind))
    return Step(trained, images, labels, context)


def check(name: str, model: nn.Module, resolution: int, dtype: str, device: torch.device) -> None:
    """Raises WrongOutput unless loss and gradients of a step are as good as PyTorch's in the same
    dtype (three times its error is allowed), against float64."""
    found = [
        _loss_and_gradients(make_step(n, model, resolution, _CHECKED, d, device))
        for n, d in ((name, dtype), (EAGER, dtype), (EAGER, "float64"))
    ]
    for ours, theirs, right, what in zip(*found, ("loss", "gradient"), strict=True):
        error, allowed = relative_error(ours, right), relative_error(theirs, right)
        if not error <= 3 * allowed + TINY:
            text = f"not timed: {name}, its {what} has the error {error:.2e} against float64"
            raise WrongOutput(f"{text}, that of PyTorch {allowed:.2e}")


def kept_for_backward(step: Step) -> int:
    """Bytes of the distinct storages that the forward saves, parameters left out."""
    weights = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step.forward()
    images = step.images.untyped_storage().data_ptr()
    del loss
    return sum(size for address, size in kept.items() if address != images)


def _train(entry: Entry, resolution: int, batch: int, dtype: str, options: Options) -> list[Row]:
    device = options.device
    title = f"training {entry.title} at {resolution}, batch {batch}, {dtype}"
    model = trainable(entry)
    peaks: dict[str, float] = {}

    def make(name: str) -> Step:
        check(name, model, resolution, dtype, device)
        step = make_step(name, model, resolution, batch, dtype, device)
        step()
        if options.on_gpu:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            step()
            peaks[name] = torch.cuda.max_memory_allocated(device) / 2**20
        return step

    names = tuple(dict.fromkeys((EAGER, *(options.impl or _names(options)))))
    steps = measure.build(names, make, title, options.failures)
    rounds = options.rounds or (11 if options.full_size else 3)
    parts = _times(steps, device, rounds)
    row = _row("train", entry, batch, resolution, dtype, device)
    rows = []
    for name, found in parts.items():
        for part in PARTS:
            rows.append(row(name, f"{part}_ms", "ms", quantiles(1e3 * s for s in found[part])))
        whole = _whole(found)
        rows.append(row(name, "step_ms", "ms", quantiles(1e3 * s for s in whole)))
        rows.append(row(name, "throughput", "images/s", quantiles(batch / s for s in whole)))
        if name in peaks:
            rows.append(row(name, "peak_memory", "MB", quantiles([peaks[name]])))
    for baseline in BASELINES:
        for name in parts:
            if baseline in parts and name != baseline:
                ratio = paired_ratio(_whole(parts[baseline]), _whole(parts[name]))
                rows.append(row(name, f"speedup_vs_{baseline}", "x", ratio))
    return rows


def _times(
    steps: dict[str, Step], device: torch.device, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each part of each implementation's step; a round takes one step of each."""
    found: dict[str, dict[str, list[float]]] = {n: {p: [] for p in PARTS} for n in steps}
    for step in steps.values():
        step()
    synchronize(device)
    for _ in range(rounds):
        for name, step in steps.items():
            for part, call in zip(PARTS, (step.forward, step.backward, step.update), strict=True):
                found[name][part].append(timed(call, device))
    return found


def _whole(parts: dict[str, list[float]]) -> list[float]:
    return [sum(three) for three in zip(*(parts[p] for p in PARTS), strict=True)]


def _loss_and_gradients(step: Step) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)  # the same dropout in each
    loss = step.forward().detach()
    step.backward()
    gradients = [p.grad.double().flatten() for p in step.model.parameters() if p.grad is not None]
    return loss, torch.cat(gradients)


def trainable(entry: Entry) -> nn.Module:
    """The network without drop paths and dropout, whose random numbers no two dtypes share."""
    model = networks.build(entry.name, entry.library).model
    for module in model.modules():
        for rate in ("p", "drop_prob", "rate"):  # torch's and torchvision's, timm's, python_ref's
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model


def _cases(options: Options) -> Iterator[tuple[Entry, str]]:
    implementations.known(options.impl, TRAINING)
    names = options.models or (NETWORKS if options.full_size else ("efficientnetv2_b0",))
    dtypes = options.dtype or (("autocast_bfloat16",) if options.on_gpu else ("float32",))
    for dtype in dtypes:
        for name in names:
            yield find(name, options.library), dtype


def trained_in(dtype: str, options: Options) -> str:
    """On a GPU 16 bits mean autocast: weights and their updates stay float32."""
    plain = dtype == "float32" or dtype.startswith("autocast")
    return f"autocast_{dtype}" if options.on_gpu and not plain else dtype


def _resolution(entry: Entry, options: Options) -> int:
    return options.resolution or (entry.train_resolution if options.full_size else 64)


def _names(options: Options) -> tuple[str, ...]:
    return TRAINING if options.on_gpu else ("eager_nchw", "eager_nhwc", "effv2")


def _batches(entry: Entry, resolution: int, dtype: str, options: Options) -> tuple[int, ...]:
    if not options.full_size:
        return (2,)
    largest = _largest_batch(entry, resolution, dtype, options.device)
    return tuple(dict.fromkeys((min(FIXED_BATCH, largest), largest)))


def _largest_batch(entry: Entry, resolution: int, dtype: str, device: torch.device) -> int:
    """Half of the largest power of two, 512 at most, that a step of eager PyTorch has room for."""
    batch, model = 512, trainable(entry)
    while batch > 1:
        try:
            make_step("eager_nhwc", model, resolution, batch, dtype, device)()
            # Half of what one model has room for: all implementations are trained in turn.
            return max(1, batch // 2)
        except RuntimeError:  # out of memory, as PyTorch or as cuDNN puts it
            batch //= 2
        torch.cuda.empty_cache()  # here, where nothing holds the tensors any more
    return 1


def _row(
    suite: str, entry: Entry, batch: int, resolution: int, dtype: str, device: torch.device
) -> Callable[[str, str, str, Quantiles], Row]:
    return results.maker(
        device,
        suite=suite,
        case=f"{entry.library} {entry.name}",
        batch=batch,
        resolution=resolution,
        dtype=dtype,
    )
