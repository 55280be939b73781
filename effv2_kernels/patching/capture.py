"""``capture``: run a model as CUDA graphs, one for each kind of input, without launch overhead."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import pytree
from ..running.structure import Tensors, Watch, hooks_of, links_of

_WARM_UPS = 3
_MOST_GRAPHS = 32


def capture(model: nn.Module, example_input: Tensor) -> Callable[[Tensor], Any]:
    """A callable like ``model`` for inference, without the cost of launching its kernels one by
    one: on a GPU a ``GraphRunner``, on the CPU, where there is nothing to capture, the model.

    example_input: (N, C, H, W); the first graph is recorded for it. Other shapes, dtypes, memory
        formats and autocast settings get theirs when they come.
    """
    if not example_input.is_cuda:
        return model
    runner = GraphRunner(model)
    runner.prepare(example_input)
    return runner


@dataclass(frozen=True)
class _Graph:
    """input: what a replay reads; outputs: what it writes, in the structure of the model's."""

    input: Tensor
    outputs: Any
    replay: Callable[[], None]


class GraphRunner:
    """Replays ``model``, recorded once for each kind of input.

    - Outputs are the caller's own: the next call does not write over them.
    - No gradients: the model runs under ``torch.no_grad()``.
    - A replay reads the weights as they are then, whoever wrote them and how. A weight or a buffer
      that was replaced or moved has the graphs recorded again. What makes a graph wrong altogether,
      training mode, hooks, modules that were replaced, patched or unpatched, lets the model itself
      run instead; so does a capture that fails, until a weight is replaced. ``reasons`` then says
      why.
    - All graphs share one memory pool, and run one after the other, whatever streams and threads
      call; a call waits on the GPU, not on the CPU.
    - The 32 kinds of input that came last are kept.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.reasons: dict[Hashable, str] = {}
        self._graphs: dict[Hashable, _Graph] = {}
        self._forward = vars(model).get("forward")
        self._watch = Watch(links_of(model))
        self._tensors = Tensors(model)
        self._lock = threading.Lock()
        # Graphs share memory only where they share the stream of their capture, too.
        self._stream: Any = None
        self._pool: Any = None
        self._failed: set[Hashable] = set()
        self._last: torch.cuda.Event | None = None

    def prepare(self, x: Tensor) -> None:
        """Record the graph for inputs like x now."""
        with self._lock, torch.no_grad():
            self._graph(_kind(x), x, self._tensors.are_there())

    def __call__(self, x: Tensor) -> Any:
        with self._lock, torch.no_grad():
            key = _kind(x)
            there = self._tensors.are_there()
            likely = self._likely(key) if there else None
            outputs = None if likely is None else self._run(likely, x)
            # While the GPU works, the CPU looks whether it was right to.
            graph = self._graph(key, x, there)
            if graph is not None:
                return outputs if graph is likely else self._run(graph, x)
        del outputs
        with torch.no_grad():
            return self.model(x)

    def _likely(self, key: Hashable) -> _Graph | None:
        """The graph that a call will most probably replay, though what it reads may no longer be
        the model's. Where the model itself ran last time, it most probably will again."""
        if self.model.training or key in self.reasons:
            return None
        return self._graphs.get(key)

    def _graph(self, key: Hashable, x: Tensor, there: bool) -> _Graph | None:
        reason = self._not_now()
        if reason:
            self._refuse(key, reason)
            return None
        if not (there and self._tensors.are_the_models()):
            self._forget()
            self._tensors = Tensors(self.model)
        if key in self._failed:
            return None
        graph = self._graphs.pop(key, None) or self._record(key, x)
        if graph is not None:
            self._graphs[key] = graph  # at the end: the first is the one that waits longest
            self.reasons.pop(key, None)
            while len(self._graphs) > _MOST_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
        return graph

    def _forget(self) -> None:
        """A pool that was emptied, or in which a capture broke off, cannot be used again."""
        self._graphs.clear()
        self._failed.clear()
        self.reasons.clear()
        self._pool = self._stream = None

    def _not_now(self) -> str:
        if self.model.training:
            return "the model is in training mode"
        own = vars(self.model).get("forward")
        if any(hooks_of(self.model)) or own is not self._forward or not self._watch.unchanged():
            return "a module of the model was replaced, patched, hooked or set to training mode"
        return ""

    def _record(self, key: Hashable, x: Tensor) -> _Graph | None:
        # Tensors made in inference mode could not be written to outside of it, where the next call
        # may come from.
        with _device_of(x), torch.inference_mode(False), torch.no_grad(), _no_cached_casts():
            self._wait()
            static = torch.empty_like(x).copy_(x)
            if x.is_cuda and self._stream is None:
                self._stream = torch.cuda.Stream(x.device)
                self._pool = torch.cuda.graph_pool_handle()
            try:
                outputs, replay = record(lambda: self.model(static), self._stream, self._pool)
            except RuntimeError as error:  # whatever the model does that no graph can hold
                self._forget()
                self._failed.add(key)
                self._refuse(key, f"the capture failed: {error}")
                return None
            self._done(x)
        return _Graph(static, outputs, replay)

    def _refuse(self, key: Hashable, reason: str) -> None:
        if self.reasons.get(key) != reason:
            warnings.warn(f"effv2_kernels.capture runs the model itself: {reason}", stacklevel=4)
        self.reasons[key] = reason

    def _run(self, graph: _Graph, x: Tensor) -> Any:
        with _device_of(x):
            self._wait()
            graph.input.copy_(x)
            graph.replay()
            outputs = pytree.tree_map_only(Tensor, torch.clone, graph.outputs)
            self._done(x)
        return outputs

    def _wait(self) -> None:
        """Let this stream's work come after the last replay, on whichever stream that was."""
        if self._last is not None:
            self._last.wait()

    def _done(self, x: Tensor) -> None:
        if x.is_cuda:
            self._last = torch.cuda.Event()
            self._last.record(torch.cuda.current_stream(x.device))


def record(function: Callable[[], Any], stream: Any, pool: Any) -> tuple[Any, Callable[[], None]]:
    """Capture ``function`` on ``stream`` of the current device into a CUDA graph that takes its
    memory from ``pool``. Returns the outputs that a replay writes, and the replay.

    It runs a few times before, so that everything that happens once (compiling, allocating) is over
    by then.
    """
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    # Within the stream, which a capture that breaks off does not leave by itself.
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            function()
        with _random_numbers_outlive_it(stream.device):
            # Only this thread's mistakes end this capture: other threads go on using the GPU.
            mode = "thread_local"
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=mode):
                outputs = function()
    torch.cuda.current_stream().wait_stream(stream)
    return outputs, graph.replay


@contextmanager
def _random_numbers_outlive_it(device: torch.device) -> Iterator[None]:
    """A capture that breaks off leaves the device's generator as if it went on, and every random
    number that is asked for later raises. The generator then gets a state as it was before, which
    graphs that others recorded do not share."""
    generator = torch.cuda.default_generators[device.index]
    before = generator.clone_state()
    try:
        yield
    except BaseException:
        generator.graphsafe_set_state(before)
        raise


@contextmanager
def _no_cached_casts() -> Iterator[None]:
    """Autocast keeps the weights that it has cast until its context is left. A graph would read
    them at their addresses long after that; without the cache the casts are part of the graph."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _kind(x: Tensor) -> Hashable:
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else None
    layout = torch.empty_like(x, device="meta").stride()  # of the copy that a graph reads
    return x.shape, layout, x.dtype, x.device, dtype


def _device_of(x: Tensor) -> Any:
    return torch.cuda.device_of(x)
