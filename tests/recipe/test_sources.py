"""Every kind of place that images come from, and what is wrong with places that are none."""

from __future__ import annotations

import json
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torchvision", reason="torchvision is an extra")

from python_ref.recipe.digits import write_folder  # noqa: E402
from python_ref.recipe.errors import RecipeError  # noqa: E402
from python_ref.recipe.sources import open_splits  # noqa: E402
from python_ref.recipe.sources.source import Source  # noqa: E402
from tests.recipe.pictures import (  # noqa: E402
    encoded,
    picture,
    write_classes,
    write_images,
    write_shard,
)


def every_label(source: Source) -> list[tuple[int, ...]]:
    return [source.labels(index) for index in range(len(source))]


def files_of(source: Source) -> set[str]:
    return {source.where(index) for index in range(len(source))}


def test_train_and_val_are_folders_of_class_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"dog": 3, "cat": 2})
    write_classes(tmp_path / "val", {"cat": 1, "dog": 1})
    training, validation = open_splits(str(tmp_path))
    assert list(training.classes) == list(validation.classes) == ["cat", "dog"]
    assert every_label(training) == [(0,), (0,), (1,), (1,), (1,)]
    assert every_label(validation) == [(0,), (1,)]
    assert training.read(2) == Path(training.where(2)).read_bytes()
    assert training.where(2) == str(tmp_path / "train" / "dog" / "dog00.jpg")


@pytest.mark.parametrize("name", ["validation", "test"])
def test_the_validation_folder_may_have_other_names(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path / "train", {"cat": 2, "dog": 2})
    write_classes(tmp_path / name, {"cat": 1, "dog": 3})
    assert len(open_splits(str(tmp_path))[1]) == 4


def test_train_may_be_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path, {"bus": 4, "train": 4})
    assert list(open_splits(str(tmp_path))[0].classes) == ["bus", "train"]


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 2, "dog": 2, ".cache": 1})
    assert list(open_splits(str(tmp_path))[0].classes) == ["cat", "dog"]


def test_a_tenth_of_every_class_is_held_out(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 20, "dog": 40, "eel": 2})
    training, validation = open_splits(str(tmp_path))
    held = every_label(validation)
    assert [held.count((label,)) for label in range(3)] == [2, 4, 1]
    assert len(training) + len(validation) == 62
    assert not files_of(training) & files_of(validation)
    assert files_of(open_splits(str(tmp_path))[1]) == files_of(validation)
    assert validation.read(0) == Path(validation.where(0)).read_bytes()


def test_a_stated_share_comes_before_a_validation_folder(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"cat": 10, "dog": 10})
    write_classes(tmp_path / "val", {"cat": 1, "dog": 1})
    training, validation = open_splits(str(tmp_path), holdout=0.3)
    assert (len(training), len(validation)) == (14, 6)


def test_validation_may_be_another_folder(tmp_path: Path) -> None:
    first = write_classes(tmp_path / "a", {"cat": 3, "dog": 3})
    other = write_classes(tmp_path / "b", {"cat": 1, "dog": 1})
    training, validation = open_splits(str(first), validation=str(other))
    assert (len(training), len(validation)) == (6, 2)


CSV = "file_name,label\na.jpg,dog\nb.jpg,cat\nc.jpg,dog\n"
JSONL = "".join(
    json.dumps({"file_name": f"{name}.jpg", "label": label}) + "\n"
    for name, label in (("a", "dog"), ("b", "cat"), ("c", "dog"))
)


@pytest.mark.parametrize(("name", "text"), [("metadata.csv", CSV), ("metadata.jsonl", JSONL)])
def test_a_table_names_files_and_labels(tmp_path: Path, name: str, text: str) -> None:
    write_images(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / name).write_text(text)
    training, validation = open_splits(str(tmp_path), validation=str(tmp_path))
    assert list(training.classes) == ["cat", "dog"] and not training.several
    assert every_label(training) == every_label(validation) == [(1,), (0,), (1,)]
    assert training.read(1) == (tmp_path / "b.jpg").read_bytes()


def test_a_table_may_be_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an optional package")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an optional package")
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    columns = {"file_name": ["a.jpg", "b.jpg"], "label": [[2, 0], [1]]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "metadata.parquet")
    training, _ = open_splits(str(tmp_path), validation=str(tmp_path))
    assert every_label(training) == [(2, 0), (1,)]


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(RecipeError, match="pyarrow.*pip install 'pyarrow'"):
        open_splits(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "file_name,label\na.jpg,red|round\nb.jpg,red\n"),
        (
            "metadata.jsonl",
            '{"file_name": "a.jpg", "label": ["red", "round"]}\n'
            '{"file_name": "b.jpg", "label": "red"}\n',
        ),
    ],
)
def test_an_image_may_have_several_labels(tmp_path: Path, name: str, text: str) -> None:
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / name).write_text(text)
    training, _ = open_splits(str(tmp_path), validation=str(tmp_path))
    assert training.several
    assert every_label(training) == [(0, 1), (0,)]


def test_labels_that_are_numbers_are_the_classes(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "metadata.csv").write_text("file_name,label\na.jpg,10\nb.jpg,2\n")
    training, _ = open_splits(str(tmp_path), validation=str(tmp_path))
    assert every_label(training) == [(10,), (2,)]
    assert list(training.classes) == [str(number) for number in range(11)]


def test_a_shard_has_images_and_classes(tmp_path: Path) -> None:
    images = [encoded(picture(seed=seed)) for seed in range(4)]
    first = {"x/1.jpg": images[0], "x/1.cls": "1", "x/2.jpg": images[1]}
    write_shard(tmp_path / "a-00.tar", {**first, "x/2.json": {"label": 0, "more": "text"}})
    second = {"3.webp": images[2], "3.cls": "2", "4.seg.png": b"a mask", "4.png": images[3]}
    write_shard(tmp_path / "a-01.tar", {**second, "4.cls": "0"})
    wholes = [
        open_splits(where, validation=where)[0]
        for where in map(str, (tmp_path, tmp_path / "a-{00..01}.tar", tmp_path / "a-*.tar"))
    ]
    for training in wholes:
        assert every_label(training) == [(1,), (0,), (2,), (0,)]
        assert [training.read(index) for index in range(4)] == images
    assert wholes[0].where(2) == f"{tmp_path / 'a-01.tar'}:3.webp"


def test_a_shard_may_have_several_labels_or_names(tmp_path: Path) -> None:
    data = encoded(picture())
    images = {"1.jpg": data, "2.jpg": data}
    lists = {"1.json": {"label": [3, 1]}, "2.json": {"label": [0]}}
    several = str(write_shard(tmp_path / "several.tar", {**images, **lists}))
    assert every_label(open_splits(several, validation=several)[0]) == [(3, 1), (0,)]
    names = str(write_shard(tmp_path / "names.tar", {**images, "1.cls": "dog", "2.cls": "cat"}))
    assert list(open_splits(names, validation=names)[0].classes) == ["cat", "dog"]


def test_shards_of_validation_need_not_have_every_class(tmp_path: Path) -> None:
    data = encoded(picture())
    held = {"1.jpg": data, "1.cls": "2"}
    write_shard(tmp_path / "train" / "0.tar", {**held, "2.jpg": data, "2.cls": "0"})
    write_shard(tmp_path / "val" / "0.tar", held)
    training, validation = open_splits(str(tmp_path))
    assert list(validation.classes) == list(training.classes) == ["0", "1", "2"]
    assert every_label(validation) == [(2,)]


def write_mnist(root: Path, images: int) -> None:
    """As torchvision keeps them once they are downloaded."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = np.arange(images * 784, dtype=np.uint8).reshape(images, 28, 28)
        labels = np.arange(images, dtype=np.uint8) % 10
        head = struct.pack(">IIII", 0x803, images, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">II", 0x801, images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def test_a_data_set_of_torchvision_by_its_name(tmp_path: Path) -> None:
    write_mnist(tmp_path, 20)
    training, validation = open_splits(f"torchvision:MNIST:{tmp_path}")
    assert len(training) == len(validation) == 20 and len(training.classes) == 10
    assert every_label(training)[:12] == [(label % 10,) for label in range(12)]
    assert training.read(0).size == (28, 28)
    assert training.where(3) == "torchvision:MNIST[3]"


def test_a_data_set_of_files_gives_files(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    training, validation = open_splits(f"torchvision:ImageFolder:{tmp_path}")
    assert (len(training), len(validation)) == (6, 2)
    assert isinstance(training.read(0), bytes)
    assert list(training.classes) == ["cat", "dog"]


def test_digits_are_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is an extra")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    training, validation = open_splits("digits")
    assert (len(training), len(validation)) == (1437, 360)
    assert list(training.classes) == [str(digit) for digit in range(10)]
    files = {file.name: file.read_bytes() for file in Path(validation.name).rglob("*.png")}
    again = write_folder(tmp_path / "again")
    assert {file.name: file.read_bytes() for file in (again / "val").rglob("*.png")} == files
    (again / "val" / "0").rename(again / "gone")
    assert not (write_folder(again) / "val" / "0").exists(), "it was written a second time"


def only_folder(tmp_path: Path) -> str:
    return str(write_classes(tmp_path / "images", {"cat": 2, "dog": 2}))


def missing(tmp_path: Path) -> str:
    return str(tmp_path / "nowhere")


def empty(tmp_path: Path) -> str:
    (tmp_path / "void").mkdir()
    return str(tmp_path / "void")


def no_images(tmp_path: Path) -> str:
    (tmp_path / "texts" / "cat").mkdir(parents=True)
    (tmp_path / "texts" / "cat" / "readme.txt").write_text("no image")
    return str(tmp_path / "texts")


def a_file(tmp_path: Path) -> str:
    (tmp_path / "cat.jpg").write_bytes(encoded(picture()))
    return str(tmp_path / "cat.jpg")


def one_class(tmp_path: Path) -> str:
    return str(write_classes(tmp_path / "images", {"cat": 3}))


def an_empty_class(tmp_path: Path) -> str:
    return str(write_classes(tmp_path / "images", {"cat": 2, "dog": 2, "eel": 0}))


def table(text: str, name: str = "metadata.csv") -> Callable[[Path], str]:
    def write(tmp_path: Path) -> str:
        write_images(tmp_path / "table", ["a.jpg", "b.jpg"])
        (tmp_path / "table" / name).write_text(text)
        return str(tmp_path / "table")

    return write


def cut_shard(tmp_path: Path) -> str:
    data = encoded(picture())
    shard = write_shard(tmp_path / "cut.tar", {"1.cls": "0", "1.jpg": data, "2.jpg": data})
    shard.write_bytes(shard.read_bytes()[:3400])  # within 2.jpg
    return str(shard)


def no_shard(tmp_path: Path) -> str:
    (tmp_path / "false.tar").write_bytes(b"not a tar at all" * 100)
    return str(tmp_path / "false.tar")


def a_missing_shard(tmp_path: Path) -> str:
    write_shard(tmp_path / "a-0.tar", {"1.jpg": b"", "1.cls": "0"})
    return str(tmp_path / "a-{0..1}.tar")


def an_image_without_class(tmp_path: Path) -> str:
    return str(write_shard(tmp_path / "a.tar", {"1.jpg": encoded(picture())}))


def a_shard_without_images(tmp_path: Path) -> str:
    return str(write_shard(tmp_path / "a.tar", {"1.txt": "text", "1.cls": "0"}))


def mixed_shards(tmp_path: Path) -> str:
    for part in ("train", "validation"):
        write_shard(tmp_path / f"images-{part}-0.tar", {"1.jpg": encoded(picture()), "1.cls": "0"})
    return str(tmp_path)


BAD = {
    "missing": (missing, r"nowhere: there is no such folder"),
    "empty": (empty, r"the folder .*void is empty"),
    "no images": (no_images, r"texts has no images: it needs a folder for each class"),
    "file": (a_file, r"cat.jpg is a file"),
    "one class": (one_class, r"images of a single class, cat"),
    "empty class": (an_empty_class, r"class folders without an image: eel"),
    "absent file": (table("file_name,label\na.jpg,x\nq.jpg,y\n"), r"metadata.csv names q.jpg"),
    "no label column": (table("file_name,kind\na.jpg,x\n"), r"no column 'label'; it has .*'kind'"),
    "no file column": (table("image,label\na.jpg,x\n"), r"metadata.csv has no column 'file_name'"),
    "no label": (table("file_name,label\na.jpg,x\nb.jpg,\n"), r"row without label.*b.jpg"),
    "no rows": (table("file_name,label\n"), r"metadata.csv names no image"),
    "no json": (table('{"file_name": \n', "metadata.jsonl"), r"metadata.jsonl cannot be read"),
    "cut shard": (cut_shard, r"the shard .*cut.tar cannot be read"),
    "no tar": (no_shard, r"the shard .*false.tar cannot be read"),
    "missing shard": (a_missing_shard, r"a-1.tar: there is no such file"),
    "no class": (an_image_without_class, r"a.tar:1.jpg has neither a 1.cls nor a 1.json"),
    "no member": (a_shard_without_images, r"a.tar has no images"),
    "mixed shards": (mixed_shards, r"shards of training and of validation.*--validation"),
    "unknown name": (lambda _: "torchvision:CIFAR11", r"no data set of this name; did you mean CI"),
    "no class name": (lambda _: "torchvision:os", r"torchvision:os: torchvision has no data set"),
    "not there": (lambda path: f"torchvision:MNIST:{path}", r"MNIST cannot be opened.*:download"),
    "flag": (lambda _: "torchvision:MNIST:data:fetch", r"may only follow :download"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_data_is_refused_by_its_name(tmp_path: Path, case: str) -> None:
    write, message = BAD[case]
    with pytest.raises(RecipeError, match=message):
        open_splits(write(tmp_path))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"cat": 1, "dog": 1, "emu": 1}, r"other has classes that the training images do not: emu"),
        ({"cat": 1}, r"other lacks classes of the training images: dog"),
    ],
)
def test_validation_must_have_the_classes_of_training(
    tmp_path: Path, classes: dict[str, int], message: str
) -> None:
    other = write_classes(tmp_path / "other", classes)
    with pytest.raises(RecipeError, match=message):
        open_splits(only_folder(tmp_path), validation=str(other))


def test_many_classes_that_differ_are_counted(tmp_path: Path) -> None:
    other = write_classes(tmp_path / "other", {f"c{number:02}": 1 for number in range(20)})
    with pytest.raises(RecipeError, match="c00, c01, c02, c03, c04 and 15 more"):
        open_splits(only_folder(tmp_path), validation=str(other))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_is_between_none_and_all(tmp_path: Path, share: float) -> None:
    with pytest.raises(RecipeError, match="--holdout must be between 0 and 1"):
        open_splits(only_folder(tmp_path), holdout=share)


def test_one_image_a_class_leaves_none_for_validation(tmp_path: Path) -> None:
    folder = write_classes(tmp_path, {"cat": 1, "dog": 1})
    with pytest.raises(RecipeError, match="one image a class"):
        open_splits(str(folder))


def test_validation_and_a_share_exclude_each_other(tmp_path: Path) -> None:
    folder = only_folder(tmp_path)
    with pytest.raises(RecipeError, match="--validation and --holdout"):
        open_splits(folder, validation=folder, holdout=0.1)


def test_sources_travel_to_workers(tmp_path: Path) -> None:
    write_mnist(tmp_path / "m", 3)
    data = encoded(picture())
    members = {"1.jpg": data, "1.cls": "0", "2.jpg": data, "2.cls": "1"}
    shard = write_shard(tmp_path / "s.tar", members)
    folder = only_folder(tmp_path)
    for where in (folder, str(shard), f"torchvision:MNIST:{tmp_path / 'm'}"):
        for source in open_splits(where, validation=None if "MNIST" in where else where):
            again = pickle.loads(pickle.dumps(source))
            assert again.read(1) == source.read(1) and again.labels(1) == source.labels(1)
