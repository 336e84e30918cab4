"""What a command prints while it works: messages, a status line, progress bars; and numbers as people read them.

There is one console per process. A command chooses it with `use_console`; everything below prints to it, so that no
function has to pass it on. In processes of a multi-process run other than the main one it prints nothing.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from glmtune.utils.streams import drop_output

if TYPE_CHECKING:
    from rich.console import Console

_CONSOLE: ContextVar[Console | None] = ContextVar("console", default=None)

# Seconds between two lines of progress where the output is no terminal.
_LINE_INTERVAL = 10.0


def is_main_process() -> bool:
    """Whether this process is the one of a multi-process run that writes files and prints."""
    return int(os.environ.get("RANK", 0)) == 0


def _make_console(to_stderr: bool = False) -> Console:
    """A console that goes on silently when the reader of its output is gone: a training that is shown by `| head` is
    not lost."""
    from rich.console import Console  # 40 ms, which `--help` does not have

    console = Console(stderr=to_stderr, soft_wrap=True)
    # rich would end the process.
    console.on_broken_pipe = partial(drop_output, "stderr" if to_stderr else "stdout")  # type: ignore[method-assign]
    return console


def get_console() -> Console:
    """The console that messages and progress go to: the one of `use_console`, else standard output."""
    from rich.console import Console

    if not is_main_process():
        return Console(quiet=True)
    console = _CONSOLE.get()
    if console is None:
        console = _make_console()
        _CONSOLE.set(console)
    return console


@contextmanager
def use_console(console: Console) -> Iterator[None]:
    """Send messages and progress of the block to `console`."""
    token = _CONSOLE.set(console)
    try:
        yield
    finally:
        _CONSOLE.reset(token)


@contextmanager
def use_stderr() -> Iterator[None]:
    """Send messages and progress of the block to standard error: for commands whose result is on standard output."""
    with use_console(_make_console(to_stderr=True)):
        yield


@contextmanager
def use_quiet_console() -> Iterator[None]:
    """Print no messages and no progress in the block."""
    from rich.console import Console

    with use_console(Console(quiet=True)):
        yield


def print_message(text: str, style: str = "") -> None:
    """Print text without markup: a path may contain what rich takes for markup."""
    get_console().print(text, style=style, highlight=False, markup=False)


def print_warning(text: str) -> None:
    """Print text that the user should act on."""
    print_message(text, "yellow")


def show_status(text: str) -> AbstractContextManager[Any]:
    """Show a status line during the block; `.update(text)` of what it gives changes it."""
    console = get_console()
    # rich has dots of Braille for a spinner, which a code page such as cp936 lacks, and no other for that case.
    return console.status(text, spinner="dots" if console.encoding.startswith("utf") else "line")


class ProgressBar:
    """Counts items: a bar with the time left, or a line every ten seconds where the output is no terminal.

    Args:
        description: what is done with the items.
        total: number of items; None if it is not known.
        completed: items that were done before, which do not count for the time left.
        unit: "items", or "bytes", which are shown in MiB or GiB with their rate.
    """

    def __init__(self, description: str, total: int | None, completed: int = 0, unit: str = "items"):
        self.description, self.total, self.completed = description, total, completed
        self._unit = unit
        self._first = completed
        self._bar: Any = None
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> ProgressBar:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TransferSpeedColumn,
        )
        from rich.progress import TimeRemainingColumn as Eta

        console = get_console()
        if console.is_terminal:
            count: list[ProgressColumn] = [MofNCompleteColumn()]
            if self._unit == "bytes":
                count = [DownloadColumn(binary_units=True), TransferSpeedColumn()]
            bar = (TextColumn("[bold]{task.description}"), BarColumn(), *count)
            self._bar = Progress(*bar, TimeElapsedColumn(), TextColumn("ETA"), Eta(), console=console)
            # Added as done, earlier items would make the first estimate far too short.
            self._task = self._bar.add_task(self.description, total=self.total)
            self._bar.update(self._task, completed=self.completed)
            self._bar.start()
        return self

    def add(self, count: int) -> None:
        """Count further items."""
        self.completed += count
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.completed)
        elif now - self._last_line >= _LINE_INTERVAL or self.completed == self.total:
            self._last_line = now
            seconds_left = None
            if self.total is not None and self.completed > self._first:
                seconds_left = (now - self._start) / (self.completed - self._first) * (self.total - self.completed)
            counted = f"{self.completed}/{self.total}"
            if self._unit == "bytes":
                rate = (self.completed - self._first) / max(now - self._start, 1e-9)
                total = "unknown size" if self.total is None else format_bytes(self.total)
                counted = f"{format_bytes(self.completed)} of {total}, {format_bytes(rate)}/s"
            print_message(f"{self.description} {counted}  ETA {format_duration(seconds_left)}")

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def count_noun(count: int, noun: str, plural: str = "") -> str:
    """A number and what it counts: `1 row`, `1,234 rows`.

    Args:
        count: of the things.
        noun: for one of them.
        plural: for several; `noun` and an s when empty.
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def format_duration(seconds: float | None) -> str:
    """Seconds as h:mm:ss."""
    if seconds is None:
        return "-:--:--"
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def format_bytes(count: float) -> str:
    """Bytes of files and memory in binary units: 512 MiB, 13.4 GiB."""
    if count >= 2**30:
        return f"{count / 2**30:,.1f} GiB"
    return f"{count / 2**20:,.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**20:,.1f} MiB"


# Messages of libraries that advise what a user of glmtune cannot or need not do: logger, and a part of the message.
_NOISE = (
    ("DeepSpeed", "Setting accelerator to CPU"),
    ("bitsandbytes.backends.cpu.ops", "kernels"),  # advice to fetch kernels from the hub, at every start
    ("bitsandbytes.autograd._functions", "MatMul8bitLt"),  # at every call: inputs are cast to fp16, as intended
    ("torch.distributed.run", "OMP_NUM_THREADS"),
)


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not any(record.name == name and part in str(record.msg) for name, part in _NOISE)


def silence_advice() -> None:
    """Drop the messages of `_NOISE`, and tokenizers' warning about forks; to be called before these are imported."""
    for name, _ in _NOISE:
        # A level would be overwritten when the library is imported.
        logging.getLogger(name).addFilter(_is_no_noise)
    warnings.filterwarnings("ignore", message="MatMul8bitLt")  # in other versions of bitsandbytes
    # Workers that load data are forked; they tokenize nothing.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def silence_libraries() -> None:
    """Silence transformers' log and bars, the deprecations that it and peft raise about each other, and advice."""
    silence_advice()

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|accelerate")
