"""What a run shows while it goes on: a bar on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

_SECONDS = 30.0  # between plain lines


@dataclass(frozen=True)
class Status:
    """Where a run is, in words. details: the stage, the epoch, how well it goes. speed: with the
    time that is left. waits: which of loader and step does."""

    step: int
    stage: int
    details: str
    speed: str
    waits: str


class Display(Protocol):
    def show(self, status: Status) -> None:
        """In place of the status before."""

    def say(self, text: str) -> None:
        """Lines that stay."""

    def close(self) -> None: ...


def choose(title: str, total: int, quiet: bool) -> Display:
    """total: the steps of the whole training. Without rich, plain lines take the bar's place."""
    if quiet:
        return Silent()
    try:
        from rich.console import Console
    except ImportError:
        return Lines(total)
    console = Console()
    return Bar(title, total, console) if console.is_terminal else Lines(total)


class Silent:
    def show(self, status: Status) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """For files and pipes: a line every half minute at most, and at the beginning of a stage."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._stage: int | None = None
        self._due = 0.0

    def show(self, status: Status) -> None:
        now = time.monotonic()
        if status.stage == self._stage and now < self._due:
            return
        self._stage, self._due = status.stage, now + _SECONDS
        self.say(f"step {status.step} of {self._total}: {status.details}, {status.speed}")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


class Bar:
    """By rich, at the bottom of the terminal, below what is said: details, bar, who waits."""

    def __init__(self, title: str, total: int, console: Any) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task(title, total=total, speed="")
        self._live = Live(self._bar, console=console, refresh_per_second=4)
        self._live.start()

    def show(self, status: Status) -> None:
        from rich.console import Group
        from rich.text import Text

        self._bar.update(self._task, completed=status.step, speed=status.speed)
        lines = (Text(text, style="dim") for text in (status.waits,) if text)
        self._live.update(Group(Text(status.details), self._bar, *lines))

    def say(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._live.stop()
