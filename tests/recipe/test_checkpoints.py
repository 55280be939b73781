"""Files are whole, whatever happens."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from python_ref.recipe import RecipeError, checkpoints


def state(step: int = 1) -> dict:
    return {"step": step, "network": {"w": torch.arange(5.0)}}


def test_round_trip(tmp_path) -> None:
    path = checkpoints.save(tmp_path, 3, state(3))
    found = checkpoints.load(path)
    assert found["step"] == 3 and torch.equal(found["network"]["w"], torch.arange(5.0))
    assert checkpoints.newest(tmp_path) == path


def test_the_last_two_are_kept(tmp_path) -> None:
    for step in (9, 10, 100, 1000):
        checkpoints.save(tmp_path, step, state(step))
    assert [checkpoints.load(p)["step"] for p in checkpoints.listed(tmp_path)] == [100, 1000]


def test_what_a_run_abandons(tmp_path) -> None:
    """It goes on from an older one; the newer ones are then not the newest of it."""
    paths = [checkpoints.save(tmp_path, step, state(step)) for step in (500, 1000)]
    assert checkpoints.forget_after(tmp_path, 500) == paths[1:]
    checkpoints.save(tmp_path, 510, state(510))
    newest = checkpoints.newest(tmp_path)
    assert newest is not None and checkpoints.load(newest)["step"] == 510


def test_none(tmp_path) -> None:
    assert checkpoints.newest(tmp_path) is None and checkpoints.newest(tmp_path / "no") is None


def test_cut_off(tmp_path) -> None:
    path = checkpoints.save(tmp_path, 1, state())
    whole = path.read_bytes()
    for part in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:part])
        with pytest.raises(RecipeError, match=path.name):
            checkpoints.load(path)


@pytest.mark.parametrize("content", [{"w": torch.ones(2)}, torch.ones(2), [1]])
def test_something_else(tmp_path, content) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(RecipeError, match="other.pt.*--init"):
        checkpoints.load(tmp_path / "other.pt")


def test_missing(tmp_path) -> None:
    with pytest.raises(RecipeError, match="gone.pt"):
        checkpoints.load(tmp_path / "gone.pt")


def test_a_folder_that_is_a_file(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="file.*cannot be written"):
        checkpoints.save(tmp_path / "file", 1, state())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full to write to")
def test_no_space_left(tmp_path, monkeypatch) -> None:
    """A full disk: the file before it stays, and nothing half-written does."""
    old = checkpoints.save(tmp_path, 1, state())
    real = open
    monkeypatch.setattr("builtins.open", lambda path, mode: real("/dev/full", mode))
    with pytest.raises(RecipeError, match="no space left for .*checkpoint-000000002"):
        checkpoints.save(tmp_path, 2, state(2))
    monkeypatch.undo()
    assert checkpoints.listed(tmp_path) == [old] == list(tmp_path.iterdir())
    assert checkpoints.load(old)["step"] == 1


def test_space_that_ends_at_the_sync(tmp_path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecipeError, match="no space left"):
        checkpoints.save(tmp_path, 1, state())
    assert not list(tmp_path.iterdir())
