"""The ceilings of the device at hand, measured: a large copy and a large matrix product.

On a GPU the rates of plain fp32 code and of special functions are those of ``launch.rates`` at the
highest clock. A CPU does all arithmetic with the lanes that do the matrix product.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from effv2_kernels.launch import rates, targets
from effv2_kernels.measuring.timing import quantiles, synchronize, timed

from .results import Row, environment, maker
from .roofline.floors import Ceilings


@functools.cache
def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measured once a process. Inputs are random: zeros make some chips faster."""
    tensor = _matrix_rate(device, dtype)
    plain, special = _by_units(device) if device.type == "cuda" else (tensor, math.inf)
    source = f"measured on {environment(device).gpu}"
    return Ceilings(source, _copy_rate(device), tensor, plain, special)


def rows(device: torch.device, dtype: torch.dtype) -> list[Row]:
    """The two measured ceilings as rows of their own suite."""
    found = measure(device, dtype)
    name = str(dtype).removeprefix("torch.")
    values = {
        "copy": ("bandwidth", "GB/s", found.memory / 1e9),
        "matrix product": ("rate", "TFLOP/s", found.tensor / 1e12),
    }
    rows = []
    for case, (metric, unit, value) in values.items():
        make = maker(device, suite="ceilings", case=case, batch=0, resolution=0, dtype=name)
        rows.append(make("pytorch", metric, unit, quantiles([value])))
    return rows


def _copy_rate(device: torch.device) -> float:
    size = (4 << 30) if device.type == "cuda" else (128 << 20)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / _median(lambda: target.copy_(source), device)


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _median(lambda: a @ b, device)


def _median(call, device: torch.device) -> float:
    for _ in range(3):
        call()
    synchronize(device)
    return quantiles(timed(call, device) for _ in range(11)).median


def _by_units(device: torch.device) -> tuple[float, float]:
    found: Any = torch.cuda.get_device_properties(device)
    target = targets.of_device(device)
    clocks = target.multiprocessors * 1000.0 * found.clock_rate  # of kHz
    return 2 * rates.of(target).float32 * clocks, rates.SPECIAL * clocks
