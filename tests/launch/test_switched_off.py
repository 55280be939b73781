"""What is switched off: the tables, the variable, and the one function that answers for all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from effv2_kernels import ops
from effv2_kernels.launch import off_tables, op_numbers, switched_off, tables, targets
from effv2_kernels.launch.off_tables import Entry
from tests.ops.cases import OPS, Geometry, arguments, ordered

GPU = "NVIDIA Test GPU (2)"
HALF = torch.bfloat16
WHOLE = Entry("stem", "cuda", "any", (), "wrong: 3 of 13 outputs", "abc123")
SHAPE = (("channels", 24), ("kernel", 3), ("least_batch", 32), ("most_batch", 512))
SLOW = Entry("depthwise_bias_act", "any", "bfloat16", SHAPE, "slower: 0.80x", "abc123")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the table of GPU is looked for; no other table and no variable says anything."""
    monkeypatch.setenv("EFFV2_TABLES", str(tmp_path))
    monkeypatch.delenv("EFFV2_DISABLE", raising=False)
    monkeypatch.setattr(tables, "FOLDER", tmp_path / "none")
    switched_off.forget()
    yield off_tables.path_of(GPU, tmp_path)
    switched_off.forget()


def written(path: Path, *entries: Entry) -> None:
    off_tables.write(path, entries)
    switched_off.forget()


def disable(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("EFFV2_DISABLE", text)
    switched_off.forget()


def numbers(**changes: int) -> tuple[int, ...]:
    found = {"batch": 128, "channels": 24, "height": 9, "width": 8, "kernel": 3, "stride": 1}
    return tuple((found | changes).values())


def test_what_is_written_is_read_and_nothing_is_switched_on_again(path: Path) -> None:
    assert path.name == "nvidia_test_gpu_2.off.json"
    written(path, WHOLE, SLOW)
    assert off_tables.read(path) == [WHOLE, SLOW]
    assert len(path.read_text().splitlines()) == 4, "one entry a line, and two brackets"
    slower = dataclasses.replace(SLOW, reason="slower: 0.70x")
    written(path, slower)
    assert off_tables.read(path) == [WHOLE, slower]


def test_what_could_not_be_read_is_not_written(path: Path) -> None:
    written(path, WHOLE)
    with pytest.raises(tables.TableError, match="dtype must be one of"):
        off_tables.write(path, [dataclasses.replace(SLOW, dtype="float64")])
    assert off_tables.read(path) == [WHOLE]


def test_a_whole_op_is_off_for_its_engine_and_on_its_gpu(path: Path) -> None:
    written(path, WHOLE)
    why = "wrong: 3 of 13 outputs, measured at abc123"
    assert switched_off.why_not("stem", "cuda", HALF, GPU) == why
    assert switched_off.why_not("stem", "cuda", torch.float32, GPU) == why
    for op, engine, gpu in (
        ("stem", "triton", GPU),
        ("conv_bias_act", "cuda", GPU),
        ("stem", "cuda", "NVIDIA H200"),
        ("stem", "cuda", ""),
    ):
        assert switched_off.why_not(op, engine, HALF, gpu) == ""


def test_a_shape_is_off_where_all_of_it_holds(path: Path) -> None:
    written(path, SLOW)

    def why(dtype: torch.dtype = HALF, **changes: int) -> str:
        return switched_off.why_not("depthwise_bias_act", "cuda", dtype, GPU, numbers(**changes))

    assert why() == why(height=3) == why(batch=32) == why(batch=512) != ""
    assert why(channels=25) == why(kernel=5) == why(batch=31) == why(batch=513) == ""
    assert why(torch.float16) == ""
    assert switched_off.why_not("depthwise_bias_act", "cuda", HALF, GPU) == "", "not the whole op"


def test_who_asks_by_name_gets_what_is_slow_but_nothing_wrong(path: Path) -> None:
    slow = dataclasses.replace(SLOW, shape=())
    wrong = dataclasses.replace(slow, op="stem", reason="wrong: 1 of 1 outputs")
    written(path, slow, wrong)
    for op, by_name, off in (
        (slow.op, False, True),
        (slow.op, True, False),
        (wrong.op, False, True),
        (wrong.op, True, True),
    ):
        assert bool(switched_off.why_not(op, "triton", HALF, GPU, by_name=by_name)) == off


def test_the_variable_switches_off_everywhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disable(monkeypatch, "stem:cuda, gated_project")
    for gpu in ("", GPU):
        assert switched_off.why_not("stem", "cuda", HALF, gpu) == "EFFV2_DISABLE"
        assert switched_off.why_not("stem", "triton", HALF, gpu) == ""
        for engine in ("cuda", "triton"):
            why = switched_off.why_not("gated_project", engine, HALF, gpu, by_name=True)
            assert why == "EFFV2_DISABLE"


def test_the_variable_switches_all_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(path, WHOLE)
    assert switched_off.named("stem", "cuda")
    disable(monkeypatch, "none")
    assert switched_off.why_not("stem", "cuda", HALF, GPU) == ""
    assert not switched_off.named("stem", "cuda") and switched_off.everything_is_on()


@pytest.mark.parametrize(
    ("text", "unknown", "known"),
    [
        ("stem,depthwise", "'depthwise'", "conv_act_pool"),
        ("stem:cudnn", "'cudnn'", "cuda, triton"),
        ("stem:", "''", "cuda, triton"),
        ("none,stem", "'none'", "'none' alone"),
    ],
)
def test_a_name_that_is_not_known_is_an_error(text: str, unknown: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"EFFV2_DISABLE: {unknown} .*{known}"):
        off_tables.parse(text)


def test_what_nothing_names_is_not_asked_for(path: Path) -> None:
    written(path, SLOW)
    assert not switched_off.named("stem", "cuda")
    assert switched_off.named("depthwise_bias_act", "triton")
    by_name = switched_off.named("depthwise_bias_act", "triton", by_name=True)
    assert not by_name, "who asks by name is not kept from what is slow"


def test_the_next_engine_is_chosen(path: Path) -> None:
    written(path, SLOW)
    target = dataclasses.replace(targets.KNOWN["sm_90a"], name=GPU)

    def chosen(channels: int, dtype: torch.dtype = HALF) -> ops.Chosen:
        x = torch.empty(32, channels, 5, 4, device="meta", dtype=dtype)
        weight = torch.empty(channels, 1, 3, 3, device="meta", dtype=dtype)
        arguments = x, weight, None, [], 0.0, (1, 1), (1, 1, 1, 1), "silu", True
        return ops.OPS["depthwise_bias_act"].choose(arguments, "cuda", target, built=True)

    off = chosen(24)
    assert off.engine.name == "aten"
    assert [name for name, _ in off.reasons] == ["cuda", "triton"]
    assert all("slower: 0.80x" in why for _, why in off.reasons)
    assert chosen(25).engine.name == chosen(24, torch.float16).engine.name == "cuda"


def test_sentences_for_a_report(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [dataclasses.replace(SLOW, shape=(("channels", n),)) for n in (1, 2)]
    written(path, WHOLE, SLOW)
    ops = {"stem": ["cuda"], "depthwise_bias_act": ["triton"], "conv_bias_act": ["triton"]}
    assert switched_off.sentences(ops, GPU) == [
        f"stem: cuda is switched off on {GPU} (wrong: 3 of 13 outputs, measured at abc123)",
        f"depthwise_bias_act: cuda and triton are switched off in bfloat16 on {GPU} at "
        "channels 24, kernel 3, least_batch 32, most_batch 512 (slower: 0.80x, measured at abc123)",
    ]
    assert switched_off.sentences({"stem": ["triton"]}, GPU) == []
    assert switched_off.sentences({"depthwise_bias_act": ["triton"]}, GPU, by_name=True) == []
    written(path, *others)
    found = switched_off.sentences({"depthwise_bias_act": ["cuda"]}, GPU)
    assert len(found) == 1 and "at 3 shapes (slower: 0.80x, measured at abc123, and" in found[0]
    disable(monkeypatch, "stem:triton")
    shown = switched_off.sentences({"stem": ["triton"]}, GPU)
    assert shown == ["stem: triton is switched off (EFFV2_DISABLE)"]


@pytest.mark.parametrize("op", OPS)
def test_the_numbers_of_an_op(op: str) -> None:
    geometry = Geometry((9, 8), (3, 3), (2, 2), (1, 1, 1, 1))
    args = arguments(op, geometry)
    found = op_numbers.numbers_of(op, ordered(op, args))
    tensors = {name: tuple(v.shape) for name, v in args.items() if isinstance(v, torch.Tensor)}
    first = next(iter(tensors.values()))
    assert tuple(found.values())[: len(first)] == first, "the batch, the channels, the map"
    if "kernel" in found:
        assert (found["kernel"], found["stride"]) == (3, 2)
    if "residual" in found:
        assert found["residual"] == int(
            args["residual"] is not None and args["residual"] is not False
        )
    weights = [shape for name, shape in tensors.items() if name.endswith("weight")]
    sizes = {"hidden": weights[0][0], "out_channels": weights[-1][0]}
    assert {k: v for k, v in found.items() if k in sizes}.items() <= sizes.items()


def test_every_op_has_numbers() -> None:
    assert set(op_numbers.OPS) == set(OPS)


GOOD = {"op": "stem", "engine": "cuda", "dtype": "any", "reason": "wrong", "commit": "abc123"}
BAD = {
    "the keys op, engine": {k: v for k, v in GOOD.items() if k != "commit"},
    "and may have shape": GOOD | {"size": 3},
    "op must be one of stem, ": GOOD | {"op": "gemm"},
    "engine must be one of cuda, triton, any, got 'cudnn'": GOOD | {"engine": "cudnn"},
    "dtype must be one of float32": GOOD | {"dtype": "int8"},
    "begins with wrong or slower, got 'ugly'": GOOD | {"reason": "ugly"},
    "commit must be that of the measurement": GOOD | {"commit": ""},
    "some of channels, height.* least_batch": GOOD | {"shape": {"hidden": 3}},
    "channels must be a whole number, got 2.5": GOOD | {"shape": {"channels": 2.5}},
    "channels must be a whole number, got True": GOOD | {"shape": {"channels": True}},
    "the shape of stem must be an object": GOOD | {"shape": 3},
    "an entry has the keys": [1, 2],
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_entry_names_its_file_and_line(message: str, path: Path) -> None:
    lines = [json.dumps(GOOD), json.dumps(GOOD), json.dumps(BAD[message])]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    with pytest.raises(tables.TableError, match=message) as error:
        switched_off.why_not("stem", "cuda", HALF, GPU)
    assert f"{path}, line 4: " in str(error.value)
