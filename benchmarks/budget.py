"""A time budget: whoever runs under one asks before each case whether there is time for it."""

from __future__ import annotations

import math
import sys
import time


class Budget:
    """``seconds`` from now; None for no limit. What is begun is finished, so that a budget is
    overrun by one case at most."""

    def __init__(self, seconds: float | None = None):
        self.end = math.inf if seconds is None else time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    def share(self, parts: int) -> Budget:
        """A budget of an equal part of what is left."""
        return Budget(None if self.end == math.inf else max(0.0, self.left()) / max(1, parts))

    def allows(self, what: str) -> bool:
        """Whether to begin ``what``; a refusal is printed, for it leaves something unmeasured."""
        if self.left() > 0:
            return True
        print(f"not measured, for the time budget is used up: {what}", file=sys.stderr)
        return False
