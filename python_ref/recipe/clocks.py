"""How long the steps of a training take, and how long they wait for images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Clock:
    """Times of the steps since the last ``read``, in seconds.

    A GPU works on after the call that started it has returned: there a step lasts from one event
    of the GPU to another, and ``read`` waits for the last one.
    """

    cuda: bool
    images: int = 0
    making: float = 0.0
    _steps: float = 0.0
    _events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    _begin: float = field(default_factory=time.perf_counter)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around what a network does with images that are there."""
        if self.cuda:
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            yield
            events[1].record()
            self._events.append(events)
            return
        begin = time.perf_counter()
        yield
        self._steps += time.perf_counter() - begin

    def made(self, images: int, seconds: float) -> None:
        """A batch of so many images, that kept one worker busy for so long."""
        self.images += images
        self.making += seconds

    def read(self, workers: int) -> tuple[float, float, float]:
        """Images a second: of all, that the loader's workers could make, and that the steps alone
        could take. It starts anew."""
        for begin, end in self._events:
            end.synchronize()
            self._steps += begin.elapsed_time(end) / 1e3
        found = (
            self.images / (time.perf_counter() - self._begin),
            self.images * max(1, workers) / max(self.making, 1e-9),
            self.images / max(self._steps, 1e-9),
        )
        self.restart()
        return found

    def restart(self) -> None:
        """Leaves out what was between the last step and now."""
        self.images, self.making, self._steps = 0, 0.0, 0.0
        self._begin = time.perf_counter()
        self._events.clear()
