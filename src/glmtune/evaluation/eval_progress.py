"""How far an evaluation is: a bar with the time left; a line now and then where the output is no terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from glmtune.utils.console import format_duration

_EVERY = 10.0
"""Seconds between two lines."""


class EvalProgress:
    """Counts rows.

    Args:
        console: where to.
        what: what is done with them.
        total: all rows.
        done: rows that an earlier evaluation did.
    """

    def __init__(self, console: Console, what: str, total: int, done: int = 0):
        self._console, self._what, self._total, self._done = console, what, total, done
        self._before = done
        self._bar: Progress | None = None
        self._start = self._told = time.monotonic()

    def __enter__(self) -> EvalProgress:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self._console,
            )
            # As work that is done, earlier rows would make the first estimate far too short.
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.update(self._task, completed=self._done)
            self._bar.start()
        return self

    def add(self, rows: int) -> None:
        """So many more are done."""
        self._done += rows
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif now - self._told >= _EVERY or self._done == self._total:
            self._told = now
            left = (now - self._start) / (self._done - self._before) * (self._total - self._done)
            self._console.print(
                f"{self._what} {self._done}/{self._total}  ETA {format_duration(left)}", highlight=False
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
