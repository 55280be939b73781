"""``torch.compile`` of a patched model in training: our ops are in the graph, opaque, and what they
give is what they give in eager mode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import effv2_kernels as ek
from tests.support import relative_error
from tests.training.few_blocks import NETWORKS, assert_same_step, images, step

BACKENDS = ("timm", "aot_eager"), ("python_ref", "inductor")
#: Of the partitioner that inductor has, without inductor's code.
PARTITIONED = "aot_eager_decomp_partition"
TRAINED = {"conv_bn_act_train", "fused_mbconv_train", "mbconv_train"}
#: The same ops run in the same order; inductor computes the classifier's end in its own.
TOLERANCE = {"aot_eager": 0.0, "inductor": 1e-4}
#: Of programs that compute the same in float64.
EXACT = 1e-9


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def networks(
    library: str = "python_ref", dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, nn.Module]:
    """A network in training, and the same patched."""
    torch.manual_seed(0)
    plain = NETWORKS[library]().to(dtype).train()
    model = copy.deepcopy(plain)
    report = ek.patch(model)
    assert {entry.training for entry in report.patched} == TRAINED
    return plain, model


def compiled(
    model: nn.Module, backend: str = "aot_eager", dynamic: bool | None = None
) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, fullgraph=True, backend=backend, dynamic=dynamic)


def ours(run: Callable[[], object]) -> set[str]:
    """The training ops that ``run`` runs."""
    with torch.autograd.profiler.profile() as seen:
        run()
    names = {event.name.partition("::") for event in seen.function_events}
    return {name for space, _, name in names if space == "effv2"}


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize(("library", "backend"), BACKENDS)
def test_a_step_is_that_of_eager(library, backend):
    plain, model = networks(library)
    eager = copy.deepcopy(model)
    run = compiled(model, backend, dynamic=True)
    for batch, size in ((4, 32), (3, 50)):
        x = images(batch, size)
        found, expected = step(model, x, run), step(eager, x)
        assert_same_step(found, expected, TOLERANCE[backend])
        # Rounding that a dozen norms amplify; the other tests compare in float64.
        assert_same_step(found, step(plain, x), 1e-3)
    assert ours(lambda: step(model, x, run)) == TRAINED | {f"{n}_backward" for n in TRAINED}
    assert graphs() == 1


def test_a_drop_path_is_drawn_anew_in_each_step():
    _, model = networks()
    run = compiled(model)
    x = images(8, 32)
    first, second, again = (step(model, x, run, seed=seed) for seed in (1, 2, 1))
    assert relative_error(second.output, first.output) > 1e-3
    assert torch.equal(again.output, first.output)


@pytest.mark.parametrize("dynamic", [None, True])
def test_other_sizes_are_no_other_graphs(dynamic):
    """Progressive resizing: by default the second size, and the second batch, compile once more."""
    plain, model = networks()
    eager = copy.deepcopy(model)

    def counted(model: nn.Module, check: bool) -> list[int]:
        torch._dynamo.reset()
        counters.clear()
        run, found = compiled(model, dynamic=dynamic), []
        for batch, size in ((4, 32), (4, 48), (4, 41), (4, 64), (4, 56), (6, 56), (3, 72), (5, 40)):
            step_here = step(model, images(batch, size), run)
            found.append(graphs())
            if check:
                assert_same_step(step_here, step(eager, images(batch, size)), 0.0)
        return found

    found = counted(model, check=True)
    assert found == ([1] * 8 if dynamic else [1, 2, 2, 2, 2, 3, 3, 3])
    assert found == counted(plain, check=False)


def test_autocast():
    plain, model = networks()
    eager = copy.deepcopy(model)
    run = compiled(model)

    def under_autocast(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return run(x)

        return call

    x = images(6, 48)
    found = step(model, x, under_autocast(run))
    assert found.output.dtype == torch.bfloat16
    assert ours(lambda: step(model, x, under_autocast(run))) >= TRAINED
    assert_same_step(found, step(eager, x, under_autocast(eager)), 0.0)
    # Autocast is not baked into the graph of a call without it, nor the other way round.
    before = step(plain, x).output
    assert relative_error(found.output, before) > 1e-3
    model.load_state_dict(eager.state_dict())
    assert_same_step(step(model, x, run), step(eager, x), 0.0)


@pytest.mark.slow
def test_compiling_keeps_no_more_for_the_backward():
    """A compiler that sees into a block keeps what it likes, and more than ours does: it is asked
    with the partitioner that inductor has."""
    plain, model = networks()
    x = images(4, 64)
    eager, unpatched = kept_for_backward(model, model, x), kept_for_backward(plain, plain, x)
    for dynamic in (False, True):
        torch._dynamo.reset()
        found = kept_for_backward(model, compiled(model, PARTITIONED, dynamic), x)
        assert found == pytest.approx(eager, rel=0.02)
        torch._dynamo.reset()
        by_compiler = kept_for_backward(plain, compiled(plain, PARTITIONED, dynamic), x)
        assert unpatched > by_compiler > 1.4 * found


def kept_for_backward(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes of the distinct storages that the forward saves, but for parameters and the images."""
    run(x)  # what compiling itself saves is of no interest
    known = {t.untyped_storage().data_ptr() for t in (x, *model.parameters())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run(x)
    assert output.requires_grad
    return sum(t.untyped_storage().nbytes() for a, t in kept.items() if a not in known)


def test_training_and_evaluation_take_turns():
    """One compiled object: training, inference, and gradients in evaluation, of every parameter."""
    _, model = networks()
    eager = copy.deepcopy(model)
    run = compiled(model)
    x = images(4, 40)
    for _ in range(2):
        model.train(), eager.train()
        assert_same_step(step(model, x, run), step(eager, x), 0.0)
        model.eval(), eager.eval()
        with torch.no_grad():
            assert relative_error(run(x), eager(x)) < 1e-5
            assert not ours(lambda: run(x)) & TRAINED
        found, expected = step(model, x, run), step(eager, x)
        assert found.gradients.keys() == {"images", *dict(model.named_parameters())}
        assert_same_step(found, expected, 0.0)
    assert graphs() == 3


@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_model_in_evaluation_has_gradients(training):
    """A graph for inference would have none, and nothing would say so."""
    torch.manual_seed(0)
    plain = NETWORKS["python_ref"]().double().eval()
    model = copy.deepcopy(plain)
    ek.patch(model, training=training)
    x = images(4, 32, dtype=torch.float64)
    found = step(model, x, compiled(model))
    assert found.gradients.keys() == {"images", *dict(model.named_parameters())}
    assert_same_step(found, step(plain, x), EXACT)


def test_a_frozen_norm():
    plain, model = networks(dtype=torch.float64)
    for network in (plain, model):
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms[1::2]:
            norm.eval().running_mean.normal_(generator=torch.Generator().manual_seed(1))
    eager = copy.deepcopy(model)
    run = compiled(model)
    x = images(4, 48, dtype=torch.float64)
    before = {n: b.clone() for n, b in model.named_buffers()}
    found = step(model, x, run)
    assert_same_step(found, step(eager, x), 0.0)
    assert_same_step(found, step(plain, x), EXACT)
    moved = [not torch.equal(found.buffers[n], b) for n, b in before.items() if "_mean" in n]
    assert moved == [norm.training for norm in norms] and any(moved) and not all(moved)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    norms[1].train()  # the graph is another, then
    eager_norms = [m for m in eager.modules() if isinstance(m, nn.BatchNorm2d)]
    eager_norms[1].train()
    assert_same_step(step(model, x, run), step(eager, x), 0.0)
