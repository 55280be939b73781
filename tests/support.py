"""What the tests share: well-conditioned random models, and DESIGN section 6's error measure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

#: Two right results differ by rounding; below this a ratio of errors tells nothing.
TINY = 1e-6
Draw = tuple[Sequence[Tensor], Tensor, Tensor]
# Part of the limit below which no further draw is needed.
_SURE = 0.6
# That calibrate: the last maps have few pixels, and statistics of few samples make a network that
# blows up on the next image.
_IMAGES = 32
# Deep and wide relatives of models that are in the family: the same blocks, only more of them.
_LARGER = ("_b4", "_b5", "_b6", "_b7", "_b8", "_l2", "_xl", "v2_l", "v2_m", "rw_m", "_cc_b1")


def timm_family() -> list[str]:
    """The names of timm's models that are made of EfficientNet's blocks."""
    import timm  # an extra

    family = timm.list_models(module="efficientnet") + timm.list_models(module="mobilenetv3")
    return sorted({name for name in family if not any(part in name for part in _LARGER)})


def relative_error(found: Tensor, reference: Tensor) -> float:
    """||found - reference|| / ||reference||, in float64; NaN stays NaN and so never passes."""
    found, reference = found.detach().double(), reference.detach().double()
    return ((found - reference).norm() / reference.norm()).item()


def assert_as_close_as_pytorch(
    found: Tensor, eager: Tensor, reference: Tensor, factor: float = 2.0, tiny: float = TINY
) -> None:
    """found may err at most ``factor`` times what PyTorch errs in the same dtype, plus ``tiny``."""
    error, allowed = relative_error(found, reference), relative_error(eager, reference)
    assert passes(error, allowed, factor, tiny), f"error {error:.2e}, PyTorch's {allowed:.2e}"


def assert_as_close_over(draws: Iterable[Draw], factor: float = 2.0, tiny: float = TINY) -> None:
    """The same of a whole network, by several networks and inputs. What one network errs on one
    image is one throw of dice, PyTorch's as ours, however many outputs share it (of 366 such throws
    by right programs one came out past twice PyTorch's): errors are pooled, as root mean squares,
    over all draws, or over the first of them if those are far below the limit.

    Each draw: found, one output for each call, judged each for itself; eager; reference.
    """
    calls: list[list[float]] = []
    allowed: list[float] = []
    for found, eager, reference in draws:
        errors = [relative_error(one, reference) for one in found]
        calls = [
            [*before, e] for before, e in zip(calls or [[] for _ in found], errors, strict=True)
        ]
        allowed.append(relative_error(eager, reference))
        if all(passes(rms(call), rms(allowed), _SURE * factor, tiny) for call in calls):
            return
    assert calls, "no draw"
    for number, call in enumerate(calls):
        text = f"call {number}: errors {_listed(call)}, PyTorch's {_listed(allowed)}"
        assert passes(rms(call), rms(allowed), factor, tiny), text


def rms(values: Sequence[float]) -> float:
    return (sum(value**2 for value in values) / len(values)) ** 0.5


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2e}" for value in values)


@torch.no_grad()
def draws(
    model: nn.Module,
    x: Tensor,
    patch: Callable[[nn.Module], object],
    calls: int = 2,
    number: int = 4,
) -> Iterator[Draw]:
    """Of ``model``, which ``patch`` patches in place, and ``x``; then of copies with other random
    weights, and other inputs. Each is called more than once: the first forward folds weights, later
    ones find them packed."""
    plain = copy.deepcopy(model)
    for seed in range(number):
        if seed:
            model, x = redrawn(plain, seed, size=x.shape[-1]), torch.randn_like(x)
        eager, reference = model(x), in_float64(model, x)
        patch(model)
        found = [model(x) for _ in range(calls)]
        assert {(f.shape, f.dtype) for f in found} == {(eager.shape, eager.dtype)}
        yield found, eager, reference


@torch.no_grad()
def redrawn(model: nn.Module, seed: int, size: int) -> nn.Module:
    """A copy with other random weights: the elements of each in another order, which keeps how they
    are distributed, and norms drawn and calibrated again, in float32 on the CPU."""
    like = next(m.weight for m in model.modules() if isinstance(m, nn.Conv2d))
    other = copy.deepcopy(model).to("cpu", torch.float32)
    torch.manual_seed(seed)
    for module in other.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight
            weight.copy_(weight.flatten()[torch.randperm(weight.numel())].view_as(weight))
    if any(isinstance(m, nn.BatchNorm2d) for m in other.modules()):
        randomise(other, seed, size)
    return other.to(like.device, like.dtype)


def passes(error: float, allowed: float, factor: float = 2.0, tiny: float = TINY) -> bool:
    return error <= factor * allowed + tiny


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0, size: int = 64) -> nn.Module:
    """Random, non-trivial BN statistics and affine parameters, with the activations' scale kept.

    Noise passes through once, and each norm takes the statistics of what reaches it, disturbed,
    before it normalises: so a layer sees what the disturbed layers before it give. (Statistics that
    are collected first and disturbed afterwards compound: a deep network then amplifies rounding
    until no two right programs agree.) The last norm of a residual branch gets a small gamma, as
    trained networks have.
    """
    torch.manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.0)
        norm.bias.normal_(0, 0.2)
    for block in model.modules():
        if getattr(block, "has_skip", False) or getattr(block, "use_res_connect", False):
            [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)][-1].weight.mul_(0.3)
    training = model.training
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    hooks = [norm.register_forward_pre_hook(_calibrate) for norm in norms]
    noise = torch.randn(_IMAGES, first.in_channels, size, size, dtype=first.weight.dtype)
    with torch.autocast("cpu", enabled=False):
        model.eval()(noise)
    for hook in hooks:
        hook.remove()
    return model.train(training)


def _calibrate(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
    """Statistics of what comes, disturbed by a tenth of a deviation and a quarter of a variance."""
    x = inputs[0]
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    variance = variance.clamp_min(0.1 * variance.mean() + 1e-6)
    norm.running_var.copy_(variance * torch.empty_like(variance).uniform_(0.8, 1.25))
    norm.running_mean.copy_(mean + 0.1 * torch.randn_like(mean) * variance.sqrt())


@torch.no_grad()
def in_float64(model: nn.Module, x: Tensor) -> Tensor:
    """What an unpatched float64 copy of the model computes, under autocast too."""
    with torch.autocast("cpu", enabled=False):
        return copy.deepcopy(model).double()(x.double())


class OurOps(TorchDispatchMode):
    """The ops of ``effv2`` that run within it, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, _, name = str(function).removesuffix(".default").partition(".")
        if namespace == "effv2":
            self.names.append(name)
        return function(*args, **(kwargs or {}))
