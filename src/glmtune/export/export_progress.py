"""What a long export shows while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ExportSteps:
    """One line on the screen: the step at work, and how far it is where that is known."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, what: str, total: int | None = None) -> None:
        """A new step.

        Args:
            what: as the user would say it.
            total: bytes that it will write; None where nobody knows.
        """
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(what, total=total)

    def advance(self, count: int) -> None:
        """So many bytes more are written."""
        if self._task is not None:
            self._progress.advance(self._task, count)


@contextmanager
def show_steps(console: Console) -> Iterator[ExportSteps]:
    """Show the steps of the block, and nothing of them afterwards."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield ExportSteps(progress)
