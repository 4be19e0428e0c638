"""Waits of more than a few seconds: a bar with the time that is left, or a line now and then where no terminal is."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from lipzoo.system.streams import make_console

PATIENCE = 30.0
"""Seconds between lines."""


class TimeColumn(TimeRemainingColumn):
    """The time that is left, or, where nobody knows, the time so far."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None else Text(f"{task.elapsed or 0:,.0f} s so far")


class Wait:
    """One wait for so many parts; None where nobody knows how many."""

    def __init__(self, progress: Progress, what: str, total: int | None):
        self._progress = progress
        self._what = what
        self._task = progress.add_task(what, total=total, rate="", status="")
        self._start = self._told = time.monotonic()
        self._done = 0
        self._total = total

    def advance(self, parts: int = 1) -> None:
        """Notes that so many parts more are done."""
        self._done += parts
        self._progress.update(self._task, completed=self._done)
        now = time.monotonic()
        if not self._progress.console.is_terminal and now - self._told > PATIENCE:
            self._told = now
            self._progress.console.print(f"{self._what}: {self._left(now)}")

    def show(self, done: int, total: int) -> None:
        """Notes that so many parts of so many are done."""
        self._total = total
        self._progress.update(self._task, total=total)
        self.advance(done - self._done)

    def _left(self, now: float) -> str:
        if not self._total or not self._done:
            return f"{now - self._start:,.0f} s so far"
        left = (now - self._start) * max(self._total / self._done - 1, 0)
        return f"{self._done / self._total:.0%}, about {left:,.0f} s left"

    def end(self) -> None:
        """Takes the bar away."""
        self._progress.remove_task(self._task)


@contextlib.contextmanager
def part_of(progress: Progress, what: str, total: int | None) -> Iterator[Wait]:
    """A wait as one more line of a progress that is shown already."""
    wait = Wait(progress, what, total)
    try:
        yield wait
    finally:
        wait.end()


def started(progress: Progress) -> contextlib.AbstractContextManager[Progress]:
    """A progress that is shown, unless it is disabled: rich before 14.1 ends even that with an empty line."""
    return contextlib.nullcontext(progress) if progress.disable else progress


@contextlib.contextmanager
def waiting(
    what: str, total: int | None, console: Console | None = None, columns: tuple[ProgressColumn, ...] = ()
) -> Iterator[Wait]:
    """A wait of its own, by default on stderr, so that what a command prints on stdout is its result alone."""
    console = console or make_console(stderr=True)
    counts = columns or (MofNCompleteColumn(),)
    text = TextColumn("{task.description}", markup=False)
    progress = Progress(
        *(text, BarColumn(bar_width=20), *counts, TimeColumn()),
        console=console,
        transient=True,
        disable=not (console.is_terminal or console.is_jupyter),
    )
    with started(progress), part_of(progress, what, total) as wait:
        yield wait
