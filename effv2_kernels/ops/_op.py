"""An op: its contract, and the engines that can compute it, in the order in which they are asked.

Dispatch, ``warmup`` and the report ask the same question, ``Op.choose``: the first engine that has
no reason not to. It can be asked without a GPU, of tensors of the device "meta", for any target.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..engines import native, onednn
from ..engines import triton as triton_ops
from ..launch import switched_off, targets
from ..launch.targets import Target

Arguments = Sequence[Any]
WhyNot = Callable[[Arguments, Target | None], str | None]


def always(arguments: Arguments, target: Target | None) -> None:
    """The ``why_not`` of what can compute anything."""


@dataclass(frozen=True)
class Engine:
    """What computes an op. name: "cuda", "triton", "onednn" or "aten", or, for two of our ops in
    turn, "two ops"; devices: of the tensors; run: of the op's arguments; why_not: a sentence, or
    None where it can and is expected to be the fastest of what comes; two_ops: instead of ``run``,
    of a namespace of ops and the arguments."""

    name: str
    devices: tuple[str, ...]
    run: Callable[..., Any] | None = None
    why_not: WhyNot = always
    two_ops: Callable[..., Any] | None = None


def native_kernel(run: Callable[..., Any], why_not: WhyNot) -> Engine:
    """A kernel of the native library."""
    return Engine("cuda", ("cuda",), run, why_not)


def triton_kernel(name: str) -> Engine:
    """A kernel of Triton; the op's own of that name."""
    return Engine("triton", ("cuda",), triton_ops.RUN[name], triton_ops.WHY_NOT[name])


def by_onednn(run: Callable[..., Any]) -> Engine:
    return Engine("onednn", ("cpu",), run, lambda arguments, target: onednn.why_not(arguments[1]))


def two_ops(run: Callable[..., Any], why_not: WhyNot = always) -> Engine:
    return Engine("two ops", ("cuda",), why_not=why_not, two_ops=run)


def by_aten(run: Callable[..., Any]) -> Engine:
    """PyTorch's own operators, on every device."""
    return Engine("aten", ("cuda", "cpu"), run)


@dataclass(frozen=True)
class Chosen:
    """The engine that computes, and why those before it do not: (engine's name, sentence)."""

    engine: Engine
    reasons: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Op:
    """``check`` raises for wrong arguments; ``fake`` gives outputs without computing them."""

    name: str
    schema: str
    check: Callable[..., None]
    fake: Callable[..., Any]
    engines: tuple[Engine, ...]

    def has(self, name: str) -> bool:
        """Whether there is an engine of that name."""
        return any(engine.name == name for engine in self.engines)

    def of(self, name: str) -> Callable[..., Any]:
        """What the engine of that name runs."""
        run = next(engine.run for engine in self.engines if engine.name == name)
        assert run is not None
        return run

    @property
    def cpu(self) -> Callable[..., Any]:
        """What CPU tensors run: oneDNN, which goes on to ATen by itself, or ATen."""
        return self.of("onednn" if self.has("onednn") else "aten")

    @property
    def aten(self) -> Callable[..., Any]:
        """The arithmetic in PyTorch's own operators: on every device and dtype, differentiable."""
        return self.of("aten")

    def choose(
        self,
        arguments: Arguments,
        device: str,
        target: Target | None = None,
        *,
        by_name: bool = False,
        built: bool | None = None,
    ) -> Chosen:
        """The engine for these arguments on a device of that type.

        target: the GPU, by default the one that the tensors are on; by_name: Triton was asked for,
        also where something else is expected to be faster, and on a CPU if it interprets there;
        built: whether the native library is there, if that is not the question.
        """
        reasons: list[tuple[str, str]] = []
        if target is None and device == "cuda":
            target = _target_of(arguments[0])
        for engine in self.engines:
            named = by_name and engine.name in ("triton", "two ops")
            if device not in engine.devices and not named:
                continue
            why = self._why_not(engine, arguments, target, by_name, built)
            if not why:
                return Chosen(engine, tuple(reasons))
            reasons.append((engine.name, why))
        raise AssertionError(f"effv2::{self.name}: nothing computes it")

    def _why_not(
        self,
        engine: Engine,
        arguments: Arguments,
        target: Target | None,
        by_name: bool,
        built: bool | None,
    ) -> str | None:
        if engine.name in ("cuda", "onednn") and by_name:
            return "Triton was asked for by name"
        if engine.name == "cuda" and not (native.LOADED if built is None else built):
            return native.missing() or "the native library is not loaded"
        if engine.name == "triton":
            missing = triton_ops.missing()
            if missing or not by_name:
                # The second argument is a weight, or what has its dtype.
                slower = triton_ops.why_slower(self.name, arguments[1].dtype)
                if missing or slower:
                    return missing or slower
        off = self._why_off(engine, arguments, target, by_name)
        return off or engine.why_not(arguments, target)

    def _why_off(
        self, engine: Engine, arguments: Arguments, target: Target | None, by_name: bool
    ) -> str | None:
        if engine.name not in ("cuda", "triton"):
            return None
        if not switched_off.named(self.name, engine.name, by_name):
            return None
        gpu = "" if target is None else target.name
        numbers = switched_off.numbers(self.name, arguments)
        dtype = arguments[1].dtype
        why = switched_off.why_not(self.name, engine.name, dtype, gpu, numbers, by_name=by_name)
        return f"switched off: {why}" if why else None


def _target_of(x: Tensor) -> Target | None:
    """None for a fake tensor's device where there is no GPU."""
    return targets.of_device(x.device) if x.is_cuda and torch.cuda.is_available() else None


class Engines:
    """A namespace of ops, as ``torch.ops.effv2`` is one, in which each runs on the engine that is
    chosen for it, past the dispatcher. ``ops``: by their names; ``note``: told of each choice;
    ``checks``: the arguments, which else were checked before."""

    def __init__(
        self,
        ops: Mapping[str, Op],
        device: str,
        note: Callable[[Op, Chosen], None] | None = None,
        *,
        checks: bool = False,
        **choice: Any,
    ):
        self._ops, self._device, self._note, self._choice = ops, device, note, choice
        self._checks = checks

    def __getattr__(self, name: str) -> SimpleNamespace:
        op = self._ops[name]
        return SimpleNamespace(default=lambda *arguments: self._call(op, arguments))

    def _call(self, op: Op, arguments: Arguments) -> Any:
        if self._checks:
            op.check(*arguments)
        chosen = self._choose(op, arguments)
        if self._note is not None:
            self._note(op, chosen)
        return self._compute(op, chosen.engine, arguments)

    def _choose(self, op: Op, arguments: Arguments) -> Chosen:
        return op.choose(arguments, self._device, **self._choice)

    def _compute(self, op: Op, engine: Engine, arguments: Arguments) -> Any:
        if engine.two_ops is not None:
            return engine.two_ops(self, *arguments)
        assert engine.run is not None
        return engine.run(*arguments)


class Named(Engines):
    """The same for the report: outputs are fakes, and nothing is computed."""

    def _compute(self, op: Op, engine: Engine, arguments: Arguments) -> Any:
        if engine.two_ops is not None:
            return engine.two_ops(self, *arguments)
        return op.fake(*arguments)


class Replayed:
    """A namespace of ops in which each runs on the engine that was chosen when the same ops were
    called in the same order, on arguments of the same kind."""

    def __init__(self, engines: Sequence[Engine]):
        self._engines = iter(engines)

    def __getattr__(self, name: str) -> SimpleNamespace:
        engine = next(self._engines)
        if engine.two_ops is None:
            return SimpleNamespace(default=engine.run)
        two = engine.two_ops
        return SimpleNamespace(default=lambda *arguments: two(self, *arguments))


# What a warning or a report has told: (op, reasons).
_TOLD: set[tuple[str, str]] = set()


def tell(op: Op, chosen: Chosen, *, silently: bool = False) -> None:
    """Warn, once, that the op runs through ATen, unless a report said so. ``silently``: it does."""
    if chosen.engine.name != "aten" or not chosen.reasons:
        return
    why = "; ".join(f"{engine}: {reason}" for engine, reason in chosen.reasons)
    if (op.name, why) not in _TOLD:
        _TOLD.add((op.name, why))
        if not silently:
            warnings.warn(f"effv2::{op.name} runs through ATen ({why})", stacklevel=2)


def names(noted: Iterable[tuple[Op, Chosen]]) -> Iterator[str]:
    """What a report calls the choices that were noted: "op[engine]", or both of two ops so."""
    rest = iter(noted)
    for op, chosen in rest:
        yield _name(op, chosen, rest)


def _name(op: Op, chosen: Chosen, rest: Iterator[tuple[Op, Chosen]]) -> str:
    if chosen.engine.two_ops is None:
        return f"{op.name}[{chosen.engine.name}]"
    return " + ".join(_name(*next(rest), rest) for _ in range(2))
