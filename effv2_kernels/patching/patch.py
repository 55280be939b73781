"""``patch``: find the blocks of a model, let them run on our ops, and say what was done.

A patched module keeps its class, its children and its tensors. What changes is the instance: a
``forward`` (and an ``extra_repr``, so that ``print(model)`` tells the truth) in its ``__dict__``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import adapters
from ..adapters.ends import Ends
from ..blocks import Block, ConvBNAct, Refusal, convs_of, leaves_of
from ..engines import passes
from ..running.inference import BlockRunner
from ..running.sequences import op_names
from ..running.structure import Watch, hooks_of, links_of
from ..running.training import BlockTrainer
from ..running.training_calls import CALLS
from . import macs
from .backends import choose, switched_off_notes
from .choices import Noted, Where, aten_notes, by_batch, here
from .report import Patched, PatchReport, Skipped
from .wrappers import (
    OURS,
    BlockForward,
    ModelForward,
    ModelRunner,
    PatchedRepr,
    PatchedTrain,
    ReplicateUnpatched,
)

_ON_A_GPU = (
    "on a GPU this is for inference: in training mode, and where autograd records, "
    "blocks run their original forward"
)


@dataclass(frozen=True)
class _Candidate:
    """A block found in the model: its dotted name, its module (None for an end that no module of
    its own computes) and what the adapter made of it."""

    name: str
    module: nn.Module | None
    described: Block | Refusal


def patch(
    model: nn.Module, backend: str = "auto", training: bool = True, strict: bool = False
) -> PatchReport:
    """Let the EfficientNet blocks in ``model`` (timm, torchvision, python_ref) run on effv2's ops.

    In place, on this instance only; parameters, buffers, names and ``state_dict`` stay as they are,
    and ``unpatch`` takes it back. Patching again, with other arguments too, replaces the patch.

    backend: "auto" takes the best that can run where the model is and falls back, with a note in
        the report; "cuda", "triton" or "cpu" raises RuntimeError with the reason if it cannot run.
    training: also run blocks on our training ops, in training mode and wherever autograd records:
        on a CPU. On a GPU blocks run their original forward there, and the report says so.
    strict: raise RuntimeError, and change nothing, if any candidate block would be skipped.
    """
    device = next((t.device for t in model.parameters()), torch.device("cpu"))
    chosen, notes = choose(backend, device)
    ends = list(_find_ends(model))
    candidates = [*_find_blocks(model), *(c for prefix, end in ends for c in _of_ends(prefix, end))]
    candidates.sort(key=_model_order(model))
    skipped = [
        Skipped(c.name, c.described.reason) for c in candidates if isinstance(c.described, Refusal)
    ]
    if strict and skipped:
        reasons = "\n".join(f"  {entry.name}: {entry.reason}" for entry in skipped)
        raise RuntimeError(f"strict=True, and these blocks cannot be patched:\n{reasons}")
    if not candidates:
        notes = [*notes, f"{type(model).__name__} holds no EfficientNet block that is known here"]
    if training and candidates:
        notes = [*notes, *_training_notes(device)]
    unpatch(model)
    accepted = [
        (c.name, c.module, c.described) for c in candidates if not isinstance(c.described, Refusal)
    ]
    coverage, shapes, uncounted = _coverage(model, [block for _, _, block in accepted])
    triton = backend == "triton"
    for _, module, block in accepted:
        if module is not None:
            _install_block(module, block, triton, training)
    # After the blocks: a model's ends may hold some, whose forward is to be found as it now is.
    pooled_heads = {
        name for prefix, end in ends for name in _install_ends(prefix, end, triton, training)
    }
    for _, end in ends:
        _join_checks(end.model)
    where = here(device, triton)
    patched: list[Patched] = []
    noted: Noted = []
    for name, _, block in accepted:
        shape = shapes.get(next(leaves_of(block)), _MIDDLING)
        ops, chosen_for_it = _ops_of(block, shape, where, name in pooled_heads)
        trains = CALLS[type(block)](block).name if training and device.type == "cpu" else ""
        patched.append(Patched(name, type(block).__name__, ops, trains))
        noted += chosen_for_it
    off = switched_off_notes((op.name for op, _ in noted), device, triton)
    if any(" at batch " in text for entry in patched for text in entry.ops):
        height, width = macs.input_size(model)
        notes = [*notes, f"what runs at a batch is for images of {height}x{width}"]
    return PatchReport(
        patched=patched,
        skipped=skipped,
        coverage=coverage,
        backend=chosen,
        notes=[*notes, *aten_notes(noted, where), *off, *uncounted],
    )


def _training_notes(device: torch.device) -> Iterator[str]:
    if device.type != "cpu":
        yield _ON_A_GPU
    elif passes.why_not_compiled():
        yield f"training: passes between convolutions go through ATen: {passes.why_not_compiled()}"


def unpatch(model: nn.Module) -> None:
    """Take every patch in ``model`` back: exactly as before."""
    for module in model.modules():
        for name in [n for n, value in module.__dict__.items() if isinstance(value, OURS)]:
            value = module.__dict__.pop(name)
            if isinstance(value, PatchedRepr):
                value.disable()


def is_patched(module: nn.Module) -> bool:
    """Whether ``module`` or anything in it runs on our ops."""
    return any(_ours(child) for child in module.modules())


def refresh(model: nn.Module) -> None:
    """Drop the folded weights that a CPU keeps; the next forward folds again. Only needed after a
    write behind autograd's back (``.data``, a NumPy view) to a few weights of one convolution; all
    other changes are noticed, and on a GPU nothing is kept."""
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, (BlockForward, ModelForward)):
            forward.clear()


def _ours(module: nn.Module) -> bool:
    return any(isinstance(value, OURS) for value in module.__dict__.values())


def _find_blocks(model: nn.Module) -> Iterator[_Candidate]:
    for name, module in model.named_modules():
        for adapter in adapters.loaded():
            described = adapter.describe(module)
            if described is not None:
                yield _Candidate(name, module, _refuse_altered(module, described))


def _find_ends(model: nn.Module) -> Iterator[tuple[str, Ends]]:
    for name, module in model.named_modules():
        for adapter in adapters.loaded():
            end = adapter.describe_ends(module)
            if end is not None:
                yield (f"{name}." if name else ""), end


def _of_ends(prefix: str, ends: Ends) -> Iterator[_Candidate]:
    for name, described in ((ends.stem_name, ends.stem), (ends.head_name, ends.head)):
        if name is None or described is None:
            continue
        module = None if ends.run_by_model else ends.model.get_submodule(name)
        if module is not None:
            described = _refuse_altered(module, described)
        elif not isinstance(described, Refusal):
            described = _refuse_altered_ends(ends, described)
        yield _Candidate(prefix + name, module, described)


def _refuse_altered(module: nn.Module, described: Block | Refusal) -> Block | Refusal:
    """A block whose insides somebody listens to or has replaced is not ours to bypass."""
    if isinstance(described, Refusal):
        return described
    if "forward" in module.__dict__ and not isinstance(module.forward, OURS):
        return Refusal("its forward was replaced on the instance")
    for name, child in module.named_modules():
        if not _has_its_own_forward(type(child)):
            return Refusal(f"the forward of {type(child).__name__} was replaced, for the class")
        if child is module:
            continue
        if any(hooks_of(child)):
            return Refusal(f"a hook is registered on its {name}, which a fused forward bypasses")
        if "forward" in child.__dict__:
            return Refusal(f"the forward of its {name} was replaced on the instance")
    return described


def _has_its_own_forward(kind: type[nn.Module]) -> bool:
    """Whether the class that gives a module its forward also defined it: a function that somebody
    put there later carries another name."""
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    name = getattr(vars(owner)["forward"], "__qualname__", "")
    return name in (f"{owner.__qualname__}.forward", "_forward_unimplemented")


def _refuse_altered_ends(ends: Ends, described: Block) -> Block | Refusal:
    for name in (*ends.methods, *ends.bypassed_methods):
        value = ends.model.__dict__.get(name)
        if value is not None and not isinstance(value, OURS):
            return Refusal(f"the model's {name} was replaced on the instance")
    for name in ends.bypassed:
        for path, child in ends.model.get_submodule(name).named_modules(prefix=name):
            if any(hooks_of(child)) or "forward" in child.__dict__:
                return Refusal(f"a hook or a forward of its own is on {path}")
    return described


def _install_block(module: nn.Module, block: Block, triton: bool, training: bool) -> None:
    watch = Watch(links_of(module))
    trainer = BlockTrainer(block, watch) if training else None
    forward = BlockForward(module, BlockRunner(block, watch, triton), trainer)
    shown = PatchedRepr(module, ", ".join(op_names(block)), [forward])
    _put(module, forward=forward, train=PatchedTrain(module, forward), extra_repr=shown)


def _put(module: nn.Module, **methods: Any) -> None:
    """On the instance, where they go before the methods of its class."""
    if "train" in vars(module):  # somebody's own, such as one that keeps a model frozen
        methods.pop("train", None)
    vars(module).update(methods, _replicate_for_data_parallel=ReplicateUnpatched(module))


def _install_ends(prefix: str, ends: Ends, triton: bool, training: bool) -> Iterator[str]:
    """Let the model's own methods run its ends; yields the head's name if its pool is fused."""
    described = {c.name: c.described for c in _of_ends(prefix, ends)}
    stem, head = described[prefix + ends.stem_name], described.get(prefix + str(ends.head_name))
    own_stem = stem if ends.run_by_model and not isinstance(stem, Refusal) else None
    head = None if isinstance(head, Refusal) else head
    if not ends.methods or (own_stem is None and head is None):
        return
    watch = Watch(_bypassed_links(ends))
    of_stem, of_head = (_end_runner(block, watch, triton) for block in (own_stem, head))
    # Else the ends are modules that train themselves, as blocks do.
    trained = (own_stem, head) if training and ends.run_by_model else (None, None)
    trainers = [None if block is None else BlockTrainer(block, watch) for block in trained]
    runner = ModelRunner(ends, watch, of_stem, of_head, trainers)
    methods = {name: ModelForward(runner, name) for name in ends.methods}
    pooled = head is not None and runner.pools_plainly
    shown = [(ends.stem_name, own_stem, False), (ends.head_name, head, pooled)]
    text = ", ".join(f"{n} by {op_names(b, pooled=p)[0]}" for n, b, p in shown if b is not None)
    shown_ends = PatchedRepr(ends.model, text, methods.values())
    train = PatchedTrain(ends.model, methods[ends.methods[0]])
    _put(ends.model, **methods, train=train, extra_repr=shown_ends)
    if pooled:
        yield prefix + str(ends.head_name)


def _join_checks(model: nn.Module) -> None:
    """Let a model whose forward is ours look after its blocks together."""
    forward = model.__dict__.get("forward")
    if not isinstance(forward, ModelForward):
        return
    found = (module.__dict__.get("forward") for module in model.modules())
    blocks = [own.runner for own in found if isinstance(own, BlockForward)]
    forward.runner.adopt(blocks, Watch(links_of(model)))


def _end_runner(block: Block | None, watch: Watch, triton: bool) -> BlockRunner | None:
    return None if block is None else BlockRunner(block, watch, triton)


def _bypassed_links(ends: Ends) -> Iterator[tuple[nn.Module, str]]:
    """Links to all that a fused forward of the whole model does not call."""
    for path in (*ends.opened, *ends.bypassed):
        parent, _, name = path.rpartition(".")
        yield ends.model.get_submodule(parent), name
    for path in ends.bypassed:
        yield from links_of(ends.model.get_submodule(path))


def _model_order(model: nn.Module):
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return lambda candidate: order[candidate.name]


def _ops_of(
    block: Block, shape: Sequence[int], where: Where, pooled: bool
) -> tuple[tuple[str, ...], Noted]:
    """What runs the block's ops on an input of ``shape``, of which the channels are the block's."""
    _, first = next(convs_of(block))
    n, _, height, width = shape
    weight = first.conv.weight
    shape = (n, first.conv.in_channels, height, width)
    pooled = pooled and isinstance(block, ConvBNAct)
    return by_batch(block, shape, weight.dtype, where, pooled=pooled)


Shapes = dict[nn.Module, torch.Size]
# Where the shape of an input is not known.
_MIDDLING = torch.Size((1, 0, 32, 32))


def _coverage(model: nn.Module, accepted: list[Block]) -> tuple[float, Shapes, list[str]]:
    """The fraction of conv + linear MACs in accepted blocks, the shapes of the blocks' inputs by
    their first convolutions, which take them, and a note if the former is an estimate."""
    if not accepted:
        return 0.0, {}, []
    ours = {leaf for block in accepted for leaf in leaves_of(block)}
    named = {module: name for name, module in model.named_modules() if module in ours}
    names = list(named.values())
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    try:
        takers = {named[conv]: conv for conv in map(next, map(leaves_of, accepted))}
        counted, total, shapes = macs.count(model, first.in_channels, takers)
    except Exception as error:  # a foreign model may want anything else than one image
        layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        counted = {name: layer.weight.numel() for name, layer in layers.items()}
        note = f"coverage counts weights, not MACs: the model does not take one image ({error})"
        return _fraction(names, counted, sum(counted.values())), {}, [note]
    by_taker = {takers[name]: shape for name, shape in shapes.items()}
    return _fraction(names, counted, total), by_taker, []


def _fraction(names: list[str], counted: dict[str, int], total: int) -> float:
    return sum(counted.get(name, 0) for name in names) / total if total else 0.0
