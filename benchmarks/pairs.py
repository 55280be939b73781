"""Check, then time two at a time: for CPUs, where one implementation disturbs the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import torch
from torch import Tensor

from effv2_kernels.measuring.agreement import acceptable, relative_error
from effv2_kernels.measuring.timing import interleaved, warm_up

from .implementations import WrongOutput
from .quiet import Monitor

Implementations = Mapping[str, Callable[[], Tensor]]


def check(implementations: Implementations, reference: Tensor, eager: str) -> dict[str, float]:
    """The relative error of each output against ``reference`` (float64).

    Raises WrongOutput if one is more than twice that of PyTorch itself, the implementation named
    ``eager``, or not finite.
    """
    errors = {name: relative_error(call(), reference) for name, call in implementations.items()}
    wrong = [name for name, error in errors.items() if not acceptable(error, errors[eager])]
    if wrong:
        found = ", ".join(f"{name} {errors[name]:.2e}" for name in (*wrong, eager))
        raise WrongOutput(f"not timed, for the relative errors against float64 are: {found}")
    return errors


def measure(
    implementations: Implementations,
    reference: Tensor,
    eager: str,
    rounds: int,
    device: torch.device,
    monitor: Monitor | None = None,
) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Seconds of both implementations of every pair, in each round, after the check and a warm-up.

    Two at a time, because an implementation disturbs the next: what it leaves of the caches and of
    the heap (freed memory that goes back to the system has to be faulted in again) is no small part
    of a forward on a CPU. With a monitor the rounds that others disturbed are run again
    (MachineBusy if there is no end to it).
    """
    check(implementations, reference, eager)
    found = {}
    for pair in combinations(implementations, 2):
        calls = {name: implementations[name] for name in pair}
        warm_up(calls, device)
        if monitor is None:
            found[pair] = interleaved(calls, rounds, device)
        else:
            monitor.start()
            found[pair] = interleaved(calls, rounds, device, monitor.disturbed)
    return found
