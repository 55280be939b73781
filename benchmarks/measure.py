"""Check, then time, whatever device it is: the one way in which suites get their numbers."""

from __future__ import annotations

import faulthandler
import gc
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from effv2_kernels.measuring.networks import NetworkError
from effv2_kernels.measuring.timing import (
    Quantiles,
    interleaved,
    paired_ratio,
    quantiles,
    synchronize,
    timed,
)

from .implementations import NotAvailable, WrongOutput
from .options import Options
from .quiet import MachineBusy
from .results import Row

Call = Callable[[], object]
C = TypeVar("C", bound=Call)
#: Exit status of a process whose GPU context is lost.
LOST = 3
_SAMPLE_SECONDS = 0.02
_MOST_REPEATS = 1000


class ContextLost(Exception):
    """A kernel wrote where it must not, or worse: every later call of this process fails."""


@dataclass(frozen=True)
class Timed:
    """Seconds of one call of each implementation, round by round."""

    seconds: Mapping[str, list[float]]

    def of(self, name: str, scale: float = 1.0) -> Quantiles:
        return quantiles(scale * value for value in self.seconds[name])

    def rate(self, name: str, items: float) -> Quantiles:
        """Quantiles of ``items`` a second."""
        return quantiles(items / value for value in self.seconds[name])

    def ratios(self, baselines: Sequence[str]) -> Iterator[tuple[str, str, Quantiles]]:
        """(implementation, baseline, quantiles of how many times as fast it is)."""
        for baseline in baselines:
            for name in self.seconds:
                if baseline in self.seconds and name != baseline:
                    ratio = paired_ratio(self.seconds[baseline], self.seconds[name])
                    yield name, baseline, ratio


def case(
    what: str,
    options: Options,
    measure: Callable[[], Iterable[Row]],
    limit: float | None = None,
) -> list[Row]:
    """The rows of one case, if there is time for it. Whatever goes wrong in it, but arguments that
    make no sense, is shown, counted as a failure, and ends this case only.

    limit: seconds after which the process ends itself, with a traceback: on a GPU that does not
    answer nothing else ends. Raises ContextLost.
    """
    if not options.budget.allows(what):
        return []
    if "torch._dynamo" in sys.modules:  # which takes seconds to import
        torch._dynamo.reset()  # each case is compiled for its own shape, as a user's would be
    if limit is not None:
        print(f"begun: {what}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(limit, exit=True)
    try:
        return list(measure())
    except (ValueError, NetworkError, MachineBusy):
        raise
    except Exception as error:
        traceback.print_exc()
        options.failures.append(f"{what}: {type(error).__name__}: {error}")
        return []
    finally:
        lost = options.on_gpu and context_is_lost()
        if limit is not None:
            faulthandler.cancel_dump_traceback_later()
        if lost:
            raise ContextLost(f"after {what}")
        _free()


def context_is_lost() -> bool:
    """Whether this process had a CUDA context, and has none that works."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def build(
    names: Sequence[str], make: Callable[[str], C], what: str, failures: list[str]
) -> dict[str, C]:
    """The implementations that can run and are right; why the others are not timed is printed.

    Whatever a foreign compiler or a full GPU raises takes away that one implementation, not the
    run. An output that is wrong does too, and goes into ``failures``.
    """
    calls: dict[str, C] = {}
    for name in names:
        reason = ""
        try:
            call = make(name)
            call()
            calls[name] = call
        except WrongOutput as wrong:
            reason = str(wrong)
            failures.append(f"{wrong} ({what})")
        except NotAvailable as why:
            reason = str(why)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if reason:
            print(f"not measured: {name}, {what}: {reason}", file=sys.stderr)
            _free()
    return calls


def _free() -> None:
    """What a failure, or a patched model (it holds itself), leaves behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def times(calls: Mapping[str, Call], device: torch.device, rounds: int) -> Timed:
    """Every implementation in every round, in an order that rotates. A call shorter than 20 ms is
    repeated until that long, so that launches follow each other as they do in use."""
    if not calls:
        return Timed({})
    repeats = {name: _repeats(call, device) for name, call in calls.items()}
    looped = {name: _loop(call, repeats[name]) for name, call in calls.items()}
    found = interleaved(looped, rounds, device)
    return Timed({name: [s / repeats[name] for s in found[name]] for name in found})


def latencies(calls: Mapping[str, Call], device: torch.device, rounds: int) -> Timed:
    """As ``times``, each call on its own, from an idle device to an idle device."""
    if not calls:
        return Timed({})
    for call in calls.values():
        for _ in range(3):
            call()
    return Timed(interleaved(calls, rounds, device))


def _repeats(call: Call, device: torch.device) -> int:
    for _ in range(2):
        call()
    synchronize(device)
    once = max(timed(call, device), 1e-7)
    return max(1, min(_MOST_REPEATS, math.ceil(_SAMPLE_SECONDS / once)))


def _loop(call: Call, count: int) -> Call:
    if count == 1:
        return call

    def repeated() -> None:
        for _ in range(count):
            call()

    return repeated
