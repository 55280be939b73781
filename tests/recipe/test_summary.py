"""The picture of a run, of as much as there is of its logs."""

from __future__ import annotations

import sys

import pytest

from python_ref.recipe import summary
from python_ref.recipe.errors import RecipeError
from python_ref.recipe.logs import Log
from python_ref.recipe.paper import preset
from python_ref.recipe.records import Evaluation, Point
from python_ref.recipe.schedule import Schedule

image = pytest.importorskip("matplotlib.image", reason="matplotlib draws the picture")


def write(folder, schedule, *, points=80, evaluations=8, loss=lambda epoch: 7 / (1 + epoch)):
    with Log(
        folder,
        schedule,
        title="run",
        begin=0,
        total_steps=points,
        quiet=True,
        tensorboard=False,
    ) as log:
        for step in range(1, points + 1):
            epoch = schedule.epochs * step / points
            stage = schedule.index(epoch - 1e-9)
            size, now = schedule.stages[stage].size, schedule.stages[stage].regularisation
            values = (now.magnitude, now.mixup, now.dropout)
            log.point(Point(step, epoch, stage, size, loss(epoch), 0.1, 1e3, 2e3, 1e3, *values))
        for number in range(1, evaluations + 1):
            epoch = schedule.epochs * number / evaluations
            top1 = 0.8 * number / evaluations
            log.evaluation(Evaluation(10 * number, epoch, 384, top1, 0.9, 1.0, 100, 1.0))


@pytest.fixture
def figures(monkeypatch):
    """Every figure that was drawn."""
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))
    )
    return drawn


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_picture_has_the_runs_values(tmp_path, figures):
    write(tmp_path, preset("m", epochs=8))
    path = summary.draw(tmp_path)
    assert path == tmp_path / "summary.png"
    assert image.imread(path).shape[2] in (3, 4)
    size, magnitude, rates, loss, accuracy = figures[0].axes
    assert texts(size) == ["128", "212", "296", "380"]
    assert texts(magnitude) == ["5", "10", "15", "20"]
    assert texts(rates) == ["0.1", "0.2", "0.3", "0.4", "0", "0.0667", "0.133", "0.2"]
    assert len(loss.lines[0].get_xdata()) == 80
    assert list(accuracy.lines[0].get_ydata()) == pytest.approx([10 * n for n in range(1, 9)])
    assert size.get_xlim() == loss.get_xlim() == (0, 8)
    assert figures[0].get_suptitle() == "best top-1 80.00% at 384 pixels, after 8 epochs"


def test_a_smoothed_loss_has_the_mean_of_its_neighbours():
    values = [float(i % 2) for i in range(600)]
    smoothed = summary._smoothed(values)
    assert len(smoothed) == 600
    assert max(abs(value - 0.5) for value in smoothed[10:-10]) < 0.1
    assert summary._smoothed([1.0, 3.0]) == [1.0, 3.0]
    assert summary._smoothed([]) == []


@pytest.mark.parametrize(
    "schedule",
    [preset("b0", epochs=8), preset("s", epochs=8, random_resize=0.5), preset("l", "official", 8)],
    ids=lambda schedule: schedule.name,
)
def test_any_schedule(schedule: Schedule, tmp_path):
    write(tmp_path, schedule)
    assert summary.draw(tmp_path).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("points", "evaluations"), [(0, 0), (1, 0), (1, 1), (0, 3), (3, 0)], ids=str
)
def test_as_much_as_there_is(points, evaluations, tmp_path, figures):
    write(tmp_path, preset("s", epochs=8), points=points, evaluations=evaluations)
    assert summary.draw(tmp_path).exists()
    title = figures[0].get_suptitle()
    assert title.startswith("best top-1") if evaluations else title == "not evaluated yet"


def test_no_logs_at_all(tmp_path):
    assert summary.draw(tmp_path).exists()


def test_a_loss_that_is_no_number_is_left_out(tmp_path, figures):
    write(tmp_path, preset("s", epochs=8), loss=lambda epoch: 1.0 if epoch < 7 else float("nan"))
    summary.draw(tmp_path)
    assert set(figures[0].axes[3].lines[1].get_ydata()) == {1.0}


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RecipeError, match=r"effv2_kernels\[train\]"):
        summary.draw(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="file"):
        summary.draw(tmp_path / "file")
