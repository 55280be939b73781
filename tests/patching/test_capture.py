"""``GraphRunner`` with a stand-in for the recording of CUDA graphs: a replay runs the function
again and writes into the outputs of the recording, as a graph would. tests/gpu has real ones."""

from __future__ import annotations

import importlib
import threading
import warnings

import pytest
import torch
from torch import Tensor, nn

import effv2_kernels as ek
from effv2_kernels.patching.capture import GraphRunner
from tests.support import randomise

# By its full name: what the package calls ``capture`` is the function.
module = importlib.import_module("effv2_kernels.patching.capture")


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was recorded; "fail" in it makes the next recording raise."""
    made: list[str] = []

    def record(function, stream, pool):
        if "fail" in made:
            raise RuntimeError("operation not permitted when stream is capturing")
        outputs = function()

        def replay() -> None:
            outputs.copy_(function())

        made.append("graph")
        return outputs, replay

    monkeypatch.setattr(module, "record", record)
    return made


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.norm(self.conv(x)).mean((2, 3))


@pytest.fixture
def model() -> Small:
    return Small().eval()


def test_one_graph_for_each_kind_of_input(
    recordings: list[str], model: Small, image: Tensor
) -> None:
    run = GraphRunner(model)
    kinds = [
        image,
        image[:1],
        image[:, :, :40],
        image.contiguous(memory_format=torch.channels_last),
    ]
    for x in kinds:
        assert torch.equal(run(x), model(x))
    assert len(recordings) == len(kinds)
    for x in kinds:
        assert torch.equal(run(x + 1), model(x + 1)), "a replay must read its own input"
    with torch.autocast("cpu", torch.bfloat16):
        assert run(image).dtype == torch.bfloat16
    assert len(recordings) == len(kinds) + 1


def test_an_output_is_not_written_over(recordings: list[str], model: Small, image: Tensor) -> None:
    run = GraphRunner(model)
    first = run(image)
    kept = first.clone()
    run(2 * image)
    assert torch.equal(first, kept)


def test_inputs_stay_as_they_are(recordings: list[str], model: Small, image: Tensor) -> None:
    before = image.clone()
    GraphRunner(model)(image)
    assert torch.equal(image, before)


def test_a_graph_of_inference_mode_serves_outside_of_it(
    recordings: list[str], model: Small, image: Tensor
) -> None:
    run = GraphRunner(model)
    with torch.inference_mode():
        run(image.clone())
    assert torch.equal(run(2 * image), model(2 * image))
    assert len(recordings) == 1


@pytest.mark.parametrize("change", ["in_place", "load", "data", "numpy"])
def test_a_replay_reads_the_weights_as_they_are(
    recordings: list[str], model: Small, image: Tensor, change: str
) -> None:
    """Whoever wrote them: where they lie is all that a graph knows."""
    run = GraphRunner(model)
    run(image)
    if change == "in_place":
        with torch.no_grad():
            model.conv.weight.mul_(2)
    elif change == "load":
        model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()})
    elif change == "data":
        model.conv.weight.data.mul_(2)
    else:
        model.conv.weight.detach().numpy()[0, 0] = 7.0
    assert torch.equal(run(image), model(image))
    assert len(recordings) == 1


@pytest.mark.parametrize("change", ["replace", "data assigned", "eps", "dtype"])
def test_what_was_replaced_or_moved_is_recorded_again(
    recordings: list[str], model: Small, image: Tensor, change: str
) -> None:
    run = GraphRunner(model)
    run(image)
    if change == "replace":
        model.conv.weight = nn.Parameter(2 * model.conv.weight)
    elif change == "data assigned":
        model.conv.weight.data = 2 * model.conv.weight.data
    elif change == "eps":
        model.norm.eps = 0.5
    else:
        model.double()
        image = image.double()
    assert torch.equal(run(image), model(image))
    assert len(recordings) == 2
    run(image)
    assert len(recordings) == 2


@pytest.mark.parametrize("change", ["training", "hook", "own_hook", "module", "unpatch"])
def test_where_a_graph_would_be_wrong_the_model_runs(
    recordings: list[str], image: Tensor, change: str
) -> None:
    model: nn.Module = nn.Sequential(Small()).eval()
    if change == "unpatch":
        import python_ref

        model = randomise(python_ref.create("b0", num_classes=10)).eval()
        ek.patch(model)
    run = GraphRunner(model)
    run(image)
    if change == "training":
        model.train()
    elif change == "hook":
        model[0].conv.register_forward_hook(lambda module, inputs, output: output + 1)
    elif change == "own_hook":
        model.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    elif change == "module":
        model[0].conv = nn.Conv2d(3, 4, 3)
    else:
        ek.unpatch(model)
    expected = "is in training mode" if change == "training" else "was replaced, patched, hooked"
    with pytest.warns(UserWarning, match=expected), torch.no_grad():
        torch.testing.assert_close(run(image), model(image), rtol=0, atol=0)
    assert len(recordings) == 1
    assert expected in next(iter(run.reasons.values()))


def test_a_capture_that_fails_falls_back_and_says_why(
    recordings: list[str], model: Small, image: Tensor
) -> None:
    run = GraphRunner(model)
    recordings.append("fail")
    with pytest.warns(UserWarning, match="not permitted"):
        assert torch.equal(run(image), model(image))
    recordings.remove("fail")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once, and not tried at every call
        assert torch.equal(run(image), model(image))
        assert recordings == [] and len(run.reasons) == 1
        run(image[:1])
        assert recordings == ["graph"], "another kind of input may do better"
        model.conv.weight = nn.Parameter(2 * model.conv.weight)
        assert torch.equal(run(image), model(image))
    assert recordings == ["graph"] * 2 and not run.reasons


def test_no_cast_is_cached_while_a_graph_is_recorded(
    monkeypatch: pytest.MonkeyPatch, model: Small, image: Tensor
) -> None:
    """A graph would read the cached cast after autocast has freed it."""
    cached: list[bool] = []

    def record(function, stream, pool):
        cached.append(torch.is_autocast_cache_enabled())
        return function(), lambda: None

    monkeypatch.setattr(module, "record", record)
    with torch.autocast("cpu", torch.bfloat16):
        GraphRunner(model)(image)
        assert torch.is_autocast_cache_enabled()
    assert cached == [False]


def test_no_gradients(recordings: list[str], model: Small, image: Tensor) -> None:
    assert not GraphRunner(model)(image.requires_grad_()).requires_grad


def test_the_graphs_that_wait_longest_go_first(
    recordings: list[str], model: Small, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_GRAPHS", 2)
    run = GraphRunner(model)
    small, middle, large = image[:, :, :10], image[:, :, :20], image
    for x in (small, middle, small, large, small):
        run(x)
    assert len(recordings) == 3
    run(middle)
    assert len(recordings) == 4


def test_threads_get_their_own_outputs(recordings: list[str], model: Small, image: Tensor) -> None:
    run = GraphRunner(model)
    expected = [model(i * image).detach() for i in range(4)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(run(i * image), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
