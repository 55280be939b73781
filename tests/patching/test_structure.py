"""What is noticed of a model that is no longer what it was: by the look in C++, and without it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from effv2_kernels import _native
from effv2_kernels.running.structure import Tensors, Watch, links_of


@pytest.fixture(params=["built", "not built"])
def look(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether there is a look in C++."""
    if request.param == "built" and _native.unchanged() is None:
        pytest.skip("effv2_kernels._C is not built here")
    if request.param == "not built":
        monkeypatch.setattr(_native, "unchanged", lambda: None)
    return request.param == "built"


def network() -> nn.Sequential:
    """A convolution, a norm and an activation, one level down."""
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU())
    return nn.Sequential(inner, nn.Dropout(0.5)).eval()


def a_child(model: nn.Sequential) -> None:
    model[0][2] = nn.SiLU()


def one_more_child(model: nn.Sequential) -> None:
    model[0].append(nn.SiLU())


def a_kind(model: nn.Sequential) -> None:
    model[0][0].__class__ = type("Other", (nn.Conv2d,), {})


def a_mode(model: nn.Sequential) -> None:
    model[1].train()


def a_hook(model: nn.Sequential) -> None:
    model[0][1].register_forward_hook(lambda *_: None)


def a_forward(model: nn.Sequential) -> None:
    model[0][0].forward = lambda x: x


def a_stride(model: nn.Sequential) -> None:
    model[0][0].stride = (2, 2)


def a_dictionary(model: nn.Sequential) -> None:
    model[1].__dict__ = {**vars(model[1]), "training": True}


def an_approximation(model: nn.Sequential) -> None:
    model[0][2].approximate = "tanh"


def a_statistic(model: nn.Sequential) -> None:
    model[0][1].running_var = None


CHANGES = [
    *(a_child, one_more_child, a_kind, a_mode, a_hook, a_forward),
    *(a_stride, a_dictionary, an_approximation, a_statistic),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: Callable[[nn.Sequential], None], look: bool) -> None:
    model = network()
    watch = Watch(links_of(model))
    for _ in range(2):  # the second time by what the first one noted
        assert watch.unchanged()
    assert (watch._snapshot is not None and watch._snapshot.holds()) == look
    change(model)
    assert not watch.unchanged()
    assert not watch.unchanged()


def test_a_change_for_a_while(look: bool) -> None:
    model = network()
    watch = Watch(links_of(model))
    for _ in range(2):
        assert watch.unchanged()
        model.train()
        assert not watch.unchanged()
        model.eval()


class Computed(nn.Conv2d):
    """Whose stride is nowhere to be found by its name."""

    steps = (1, 1)

    @property
    def stride(self) -> tuple[int, int]:
        return self.steps

    @stride.setter
    def stride(self, value: tuple[int, int]) -> None:
        self.steps = value


def test_an_attribute_that_a_class_computes(look: bool) -> None:
    model = nn.Sequential(Computed(3, 4, 3)).eval()
    watch = Watch(links_of(model))
    assert watch.unchanged() and watch.unchanged()
    model[0].steps = (2, 2)
    assert not watch.unchanged()


def test_an_equal_value_is_none(look: bool) -> None:
    model = network()
    watch = Watch(links_of(model))
    assert watch.unchanged()
    model[0][0].stride = tuple([1, 1])
    model[0][1].running_mean = torch.ones(4)
    assert watch.unchanged() and watch.unchanged()


def test_a_copy_watches_its_own_model(look: bool) -> None:
    model = network()
    watch = Watch(links_of(model))
    assert watch.unchanged()
    other, copied = copy.deepcopy((model, watch))
    assert copied.unchanged()
    a_mode(other)
    assert watch.unchanged() and not copied.unchanged()


def a_parameter(model: nn.Sequential) -> None:
    model[0][0].weight = nn.Parameter(torch.ones(4, 3, 3, 3))


def a_buffer(model: nn.Sequential) -> None:
    model[0][1].running_mean = torch.ones(4)


def an_eps(model: nn.Sequential) -> None:
    model[0][1].eps = 1e-2


def an_eps_elsewhere(model: nn.Sequential) -> None:
    model[0][1].__dict__ = {**vars(model[0][1]), "eps": 1e-2}


@pytest.mark.parametrize("change", [a_parameter, a_buffer, an_eps, an_eps_elsewhere])
def test_the_models_tensors(change: Callable[[nn.Sequential], None], look: bool) -> None:
    model = network()
    tensors = Tensors(model)
    assert tensors.are_the_models() and tensors.are_there()
    change(model)
    assert not tensors.are_the_models() and tensors.are_there()


def test_what_another_thread_writes_meanwhile(look: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the snapshot: it does not pass for what is to be."""
    model = network()
    watch = Watch(links_of(model))
    usual = watch._taken

    def taken():
        a_forward(model)
        return usual()

    monkeypatch.setattr(watch, "_taken", taken)
    watch.unchanged()
    a_forward(model)
    assert not watch.unchanged()


def test_what_is_another_object_each_time_gets_no_snapshot_for_ever(look: bool) -> None:
    model = network()
    watch = Watch(links_of(model))
    for n in range(20):
        model[0][1].running_mean = torch.full((4,), float(n))
        assert watch.unchanged()
    assert watch._tries == (0 if look else 8)


def test_norms_that_count_nothing_and_a_users_own(look: bool) -> None:
    model = network()
    del model[0][1].num_batches_tracked
    assert Tensors(model).are_there()

    class Own(nn.BatchNorm2d):
        pass

    model = nn.Sequential(Own(4)).eval()
    tensors = Tensors(model)
    model[0].num_batches_tracked.set_(torch.tensor(3))  # which its forward may read
    assert not tensors.are_there()


def test_where_they_lie(look: bool) -> None:
    model = network()
    tensors = Tensors(model)
    model[0][0].weight.data = torch.ones(4, 3, 3, 3)
    assert not tensors.are_there()
    model = network()
    tensors = Tensors(model)
    model[0][1].num_batches_tracked.set_(torch.tensor(3))  # which no evaluation reads
    assert tensors.are_there() and tensors.are_the_models()


@pytest.fixture
def unchanged() -> Iterator[Callable[[tuple, tuple, tuple], bool]]:
    found = _native.unchanged()
    if found is None:
        pytest.skip("effv2_kernels._C is not built here")
    yield found


def test_what_the_look_in_cpp_says(unchanged: Callable) -> None:
    value, held = network(), {"a": None}
    held["b"] = value
    kind = value, nn.Sequential, vars(value)
    assert unchanged((held, "a", None, held, "b", value, held, "c", ...), (held, 2), kind)
    assert not unchanged((held, "b", object()), (), ())
    assert not unchanged((held, "c", None), (), ())
    assert not unchanged((held, "a", ...), (), ())
    assert not unchanged((), (held, 3), ())
    assert not unchanged((), (), (value, nn.Module, vars(value)))  # a subclass is another type
    assert not unchanged((), (), (value, nn.Sequential, dict(vars(value))))


def test_what_the_look_in_cpp_refuses(unchanged: Callable) -> None:
    with pytest.raises(ValueError, match="incomplete"):
        unchanged(({}, "a"), (), ())
    with pytest.raises(TypeError, match="dictionary"):
        unchanged(([], "a", 1), (), ())
    with pytest.raises(TypeError, match="unhashable"):
        unchanged(({}, [], 1), (), ())
    with pytest.raises(TypeError):
        unchanged((), ({}, "a"), ())
