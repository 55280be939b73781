"""Noticing that something else uses the machine's cores while a CPU benchmark runs."""

from __future__ import annotations

import os
import time

from effv2_kernels.measuring.load import seconds_of_others


class MachineBusy(Exception):
    """Too many rounds were disturbed to measure anything."""


class Monitor:
    """Says after each round whether others used more than ``share`` of the cores during it.

    A round is thrown away for what others did, never for how long it took, so the rest is a fair
    sample. Raises MachineBusy when ``patience`` seconds of rounds were thrown away.
    """

    def __init__(self, share: float = 0.05, patience: float = 900.0):
        self.share = share
        self.patience = patience
        self.wasted = 0.0
        self.start()

    def start(self) -> None:
        self._time, self._others = time.monotonic(), seconds_of_others()

    def disturbed(self) -> bool:
        """Whether the round since the last call (or since ``start``) does not count."""
        began, before = self._time, self._others
        self.start()
        elapsed = self._time - began
        used = (self._others - before) / (elapsed * (os.cpu_count() or 1))
        if used <= self.share:
            return False
        self.wasted += elapsed
        if self.wasted > self.patience:
            raise MachineBusy(
                f"others used the cores during {self.wasted:.0f} s of rounds (the last: {used:.0%})"
            )
        time.sleep(min(5.0, elapsed))  # spinning threads of ours would disturb them in turn
        self.start()
        return True
