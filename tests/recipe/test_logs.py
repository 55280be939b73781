"""What a run shows and writes down, also where it was killed or the disk is full."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import pytest

from python_ref.recipe import display, logs
from python_ref.recipe.errors import RecipeError
from python_ref.recipe.logs import Log, bottleneck
from python_ref.recipe.paper import preset
from python_ref.recipe.records import Evaluation, Point, read

SCHEDULE = preset("s", epochs=8)
POINT = Point(10, 0.1, 0, 128, 6.5, 0.25, 1800.0, 2100.0, 2400.0, 5.0, 0.0, 0.1)
EVALUATION = Evaluation(100, 1.0, 384, 0.25, 0.5, 3.2, 50000, 20.0)


def log(output, begin=0, **keywords):
    keywords = {"quiet": True, "tensorboard": False} | keywords
    return Log(output, SCHEDULE, title="s", begin=begin, total_steps=800, **keywords)


def point(step):
    stage = SCHEDULE.index(step / 100 - 1e-9)
    size = SCHEDULE.stages[stage].size
    return replace(POINT, step=step, epoch=step / 100, stage=stage, size=size)


def steps(output):
    return [each.step for each in read(output / logs.POINTS, Point)]


def test_who_waits():
    assert bottleneck(2100, 910) == (
        "loader 2,100 images/s, step 910 images/s: the step is what takes the time"
    )
    assert bottleneck(800, 910).endswith("the step waits for images; more --workers or --loader tv")
    for unknown in (0.0, float("nan"), float("inf")):
        assert bottleneck(unknown, 910) == bottleneck(910, unknown) == ""


def test_records_are_in_their_files_at_once(tmp_path):
    run = log(tmp_path / "new" / "folder")
    run.point(POINT)
    run.evaluation(EVALUATION)
    run.say("two\nlines")
    folder = tmp_path / "new" / "folder"
    assert read(folder / "steps.csv", Point) == [POINT]
    assert read(folder / "evaluations.csv", Evaluation) == [EVALUATION]
    header, row = (folder / "evaluations.csv").read_text().splitlines()
    assert header == "step,epoch,size,top1,top5,loss,images,seconds"
    assert row == "100,1,384,0.25,0.5,3.2,50000,20"
    text = (folder / "log.txt").read_text().splitlines()
    assert [line[21:] for line in text[-2:]] == ["two", "lines"]
    assert "top-1 25.00%" in text[0]


def test_without_output_no_file_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with log(None, tensorboard=True) as run:
        run.point(POINT)
        run.evaluation(EVALUATION)
        run.say("something")
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_does_steps_again_and_no_row_twice(tmp_path):
    first = log(tmp_path)
    for step in range(10, 60, 10):
        first.point(point(step))
    first.evaluation(replace(EVALUATION, step=30))
    first.evaluation(replace(EVALUATION, step=50))
    second = log(tmp_path, begin=30)  # the first was killed
    assert steps(tmp_path) == [10, 20, 30]
    second.evaluation(replace(EVALUATION, step=30, top1=0.75))
    second.point(point(40))
    assert steps(tmp_path) == [10, 20, 30, 40]
    (again,) = read(tmp_path / "evaluations.csv", Evaluation)
    assert again.top1 == 0.75
    log(tmp_path)
    assert steps(tmp_path) == []


def test_a_row_that_is_cut_off_is_dropped(tmp_path):
    run = log(tmp_path)
    run.point(point(10))
    whole = (tmp_path / "steps.csv").read_text()
    run.point(point(20))
    text = (tmp_path / "steps.csv").read_text()
    for end in range(len(whole), len(text)):
        (tmp_path / "steps.csv").write_text(text[:end])
        assert steps(tmp_path) == [10]
    (tmp_path / "steps.csv").write_text(text[:-7] + "\n")
    log(tmp_path, begin=20).point(point(30))
    assert steps(tmp_path) == [10, 30]


@pytest.mark.parametrize("content", ["step,loss\n1,2\n", "what is this\n"])
def test_a_file_that_is_no_log(content, tmp_path):
    (tmp_path / "steps.csv").write_text(content)
    with pytest.raises(RecipeError, match=r"steps.csv is not a log of this version"):
        log(tmp_path)
    assert (tmp_path / "steps.csv").read_text() == content


@pytest.mark.parametrize("name", ["steps.csv", "evaluations.csv", "log.txt"])
def test_a_full_disk(name, tmp_path):
    run = log(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(RecipeError, match=f"{name} cannot be written, no space left"):
        run.point(POINT)
        run.evaluation(EVALUATION)


def test_an_output_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"file/run cannot be written: Not a directory"):
        log(tmp_path / "file" / "run")


# The terminal. Under pytest the output is no terminal.


def test_plain_lines_come_at_new_stages_and_not_more_often(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    with log(None, quiet=False) as run:
        for step in range(10, 410, 10):
            run.point(point(step))
            now += 1.0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["10", "210"]  # stages begin
    now = 1000.0
    with log(None, quiet=False) as run:
        for step in range(10, 210, 10):
            run.point(point(step))
            now += 4.0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["10", "90", "170"]  # 32 seconds
    assert "stage 1/4 at 128 pixels" in lines[1] and "1,800 images/s" in lines[1]


def test_a_quiet_run_says_nothing(capsys, tmp_path):
    with log(tmp_path) as run:
        run.point(POINT)
        run.say("something")
    assert capsys.readouterr() == ("", "")
    assert "something" in (tmp_path / "log.txt").read_text()


def test_each_stage_ends_with_who_waited(tmp_path):
    with log(tmp_path) as run:
        run.point(replace(POINT, loader=1000.0, step_only=5000.0))
        run.point(replace(POINT, step=20, loader=3000.0, step_only=5000.0))
        run.point(point(210))
    first, last = (tmp_path / "log.txt").read_text().splitlines()
    # Two equal shares of images at 1000 and at 3000 a second take as long as all at 1500.
    assert "stage 1 at 128 pixels, up to step 20" in first and "loader 1,500 images/s" in first
    assert "the step waits for images" in first
    assert "stage 2 at 185 pixels" in last and "step 2,400 images/s" in last


def test_time_left_counts_the_larger_images_to_come(monkeypatch):
    shown = []
    monkeypatch.setattr(display.Silent, "show", lambda _, status: shown.append(status.speed))
    now = 0.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    run = log(None)
    run.point(point(10))
    now = 90.0
    run.point(point(100))
    assert "not known" in shown[0]
    sizes = [stage.size for stage in SCHEDULE.stages]
    seconds = 100 * (1 + 2 * sum((size / sizes[0]) ** 2 for size in sizes[1:]))
    minutes, rest = divmod(round(seconds), 60)
    assert shown[1].endswith(f"0:{minutes:02}:{rest:02} left")


def test_a_resumed_run_knows_the_last_evaluation(monkeypatch, tmp_path):
    log(tmp_path).evaluation(EVALUATION)
    shown = []
    monkeypatch.setattr(display.Silent, "show", lambda _, status: shown.append(status.details))
    log(tmp_path, begin=100).point(point(110))
    assert "top-1 25.0%" in shown[0]


@pytest.fixture
def terminal(monkeypatch):
    pytest.importorskip("rich", reason="the bar is rich's")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def test_the_bar(terminal, capsys):
    with log(None, quiet=False) as run:
        run.point(point(400))
        run.say("[bold] stays as it is")
        run.evaluation(EVALUATION)
    shown = capsys.readouterr().out
    assert "[bold] stays as it is" in shown
    assert "stage 2/4 at 185 pixels, epoch 4.00 of 8, loss 6.500, top-1 25.0%" in shown
    assert "50%" in shown and "1,800 images/s" in shown
    assert "loader 2,100 images/s" in shown


def test_the_bar_ends_with_an_error(terminal, capsys):
    run = log(None, quiet=False)
    with pytest.raises(RuntimeError, match="as it is"), run:
        raise RuntimeError("as it is")
    assert "\x1b[?25h" in capsys.readouterr().out  # the cursor is back


def test_without_rich_lines_are_plain(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with log(None, quiet=False) as run:
        run.point(POINT)
    assert "step 10 of 800" in capsys.readouterr().out


# TensorBoard.


class Writer:
    """In place of TensorBoard's, which may not be installed."""

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step = folder, purge_step
        self.scalars, self.closed = {}, 0

    def add_scalar(self, name, value, step):
        self.scalars[name, step] = value

    def close(self):
        self.closed += 1


@pytest.fixture
def writers(monkeypatch):
    made = []

    def make(*arguments, **keywords):
        made.append(Writer(*arguments, **keywords))
        return made[-1]

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = make
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_tensorboard(writers, tmp_path):
    with log(tmp_path, tensorboard=True) as run:
        run.point(POINT)
        run.evaluation(EVALUATION)
    run.close()
    (writer,) = writers
    assert writer.folder == str(tmp_path / "tensorboard")
    assert writer.scalars["training/loss", 10] == 6.5
    assert writer.scalars["evaluation/top1", 100] == 0.25
    assert not any(name.endswith("/step") for name, _ in writer.scalars)
    assert writer.closed == 1


def test_tensorboard_forgets_what_is_done_again(writers, tmp_path):
    log(tmp_path, tensorboard=True)
    log(tmp_path, begin=30, tensorboard=True)
    assert [writer.purge_step for writer in writers] == [0, 31]


@pytest.mark.parametrize("error", [ImportError("no tensorboard"), TypeError("old protobuf\nx")])
def test_without_tensorboard_a_line_says_so(error, monkeypatch, tmp_path):
    class Broken(types.ModuleType):
        def __getattr__(self, name):
            raise error

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Broken("torch.utils.tensorboard"))
    with log(tmp_path, tensorboard=True) as run:
        run.point(POINT)
    said = (tmp_path / "log.txt").read_text()
    assert said.count("TensorBoard logs need pip install tensorboard") == 1
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboards_own_files(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is an extra")
    with log(tmp_path, tensorboard=True) as run:
        run.point(POINT)
    assert list((tmp_path / "tensorboard").glob("events*"))
