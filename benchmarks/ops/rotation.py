"""One operator over several sets of inputs in turn, so that no cache carries them to the next call;
on a GPU as one CUDA graph, so that the gaps between launches are not measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_MOST_SETS = 64
_CACHE_ON_CPU = 32 << 20


def sets_needed(bytes_of_a_call: float, device: torch.device) -> int:
    """So many that together they are twice the last-level cache (64 at most)."""
    cache = _CACHE_ON_CPU
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
    return int(max(2, min(_MOST_SETS, -(-2 * cache // max(1, int(bytes_of_a_call))))))


class Rotation:
    """Calls ``function`` with each of ``sets``; ``count`` calls at once."""

    def __init__(self, function: Callable[..., Any], sets: Sequence[tuple[Any, ...]], name: str):
        self.function, self.sets, self.count = function, sets, len(sets)
        self.graph: torch.cuda.CUDAGraph | None = None
        if next(v for v in sets[0] if isinstance(v, Tensor)).is_cuda:
            self._capture(name)

    def __call__(self) -> None:
        if self.graph is not None:
            self.graph.replay()
        else:
            self._plain()

    def _plain(self) -> None:
        for arguments in self.sets:
            self.function(*arguments)

    def _capture(self, name: str) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._plain()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._plain()
        except RuntimeError as error:
            print(f"{name} cannot be captured, so launches are timed too: {error}", file=sys.stderr)
            torch.cuda.synchronize()
            return
        self.graph = graph
