"""What other processes do with the processor meanwhile: a busy machine cannot be measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")


def seconds_of_others() -> float:
    """Processor seconds that this machine spent on anything but this process, so far; 0 where
    the kernel does not tell."""
    if not _STAT.exists():
        return 0.0
    ticks = [int(field) for field in _STAT.read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()


class Share:
    """The share of all cores that others have used since this was made."""

    def __init__(self) -> None:
        self._time, self._others = time.monotonic(), seconds_of_others()

    def now(self) -> float:
        elapsed = max(time.monotonic() - self._time, 1e-6)
        return (seconds_of_others() - self._others) / (elapsed * (os.cpu_count() or 1))
