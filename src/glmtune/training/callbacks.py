"""What happens beside the training steps: metrics on disk, progress on screen, a clean stop."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from glmtune.run_dir import RunDir
from glmtune.training.distributed import anywhere, is_main
from glmtune.utils.console import format_duration

_KEPT = ("loss", "grad_norm", "learning_rate")
_SHOWN = {"eval_rouge_l": "ROUGE-L", "eval_bleu4_characters": "BLEU-4"}


class Meter:
    """Tokens per second and time left, from the Trainer's own counters."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._first_step = self._tokens = 0

    def begin(self, state: TrainerState) -> None:
        """Start counting here; a resumed run has steps and tokens behind it."""
        self._start = self._last = time.monotonic()
        self._first_step = state.global_step
        self._tokens = int(state.num_input_tokens_seen)

    def tokens_per_second(self, state: TrainerState) -> float:
        """Non-padding tokens per second since the last call."""
        now, seen = time.monotonic(), int(state.num_input_tokens_seen)
        rate = (seen - self._tokens) / max(now - self._last, 1e-9)
        self._last, self._tokens = now, seen
        return rate

    def leave_out(self, seconds: float) -> None:
        """Do not count time that went into an evaluation."""
        self._last += seconds

    def seconds_left(self, state: TrainerState) -> float | None:
        """Estimated from the mean step so far; None before the first."""
        done = state.global_step - self._first_step
        if done <= 0:
            return None
        return (time.monotonic() - self._start) / done * (state.max_steps - state.global_step)


class MetricsCallback(TrainerCallback):
    """A line of metrics.jsonl per logged step, and the same numbers on the screen."""

    def __init__(self, run: RunDir, progress: TrainingProgress):
        self._run = run
        self._progress = progress
        self._meter = Meter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._meter.begin(state)
        self._progress.begin(state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.step(state.global_step, self._meter.seconds_left(state))
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last loss is the one that is asked for

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        entry: dict[str, Any] = {"step": state.global_step, "epoch": round(float(state.epoch or 0), 4)}
        if "loss" in logs:
            entry |= {key: logs[key] for key in _KEPT if key in logs}
            entry["tokens_per_second"] = round(self._meter.tokens_per_second(state), 2)
        entry |= {key: value for key, value in logs.items() if key.startswith("eval_")}
        # An overflow in fp16 gives an infinite norm, which JSON cannot say.
        entry = {key: value if math.isfinite(value) else None for key, value in entry.items()}
        if len(entry) == 2:
            return  # the Trainer's closing summary; summary.json holds it
        self._run.append_metrics(entry)
        self._progress.log(entry)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._meter.leave_out((metrics or {}).get("eval_runtime", 0.0))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress.end()


class TrainingProgress:
    """A bar with loss, tokens/s and the time left; plain lines where the output is no terminal."""

    def __init__(self, console: Console):
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = 0
        self._left: float | None = None

    def begin(self, done: int, total: int) -> None:
        """Show the bar."""
        self._total = total
        if not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[eta]}"),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=total, completed=done, numbers="", eta="-:--:--")
        self._bar.start()

    def step(self, done: int, seconds_left: float | None) -> None:
        """Move the bar."""
        self._left = seconds_left
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, eta=format_duration(seconds_left))

    def log(self, entry: dict[str, Any]) -> None:
        """Show a logged step."""
        text = describe(entry)
        if self._bar is None or self._task is None:
            step = f"step {entry['step']}/{self._total}"
            self._console.print(f"{step}  {text}  ETA {format_duration(self._left)}", highlight=False)
        elif "loss" in entry:
            self._bar.update(self._task, numbers=text)
        else:
            self._bar.console.print(f"step {entry['step']}: {text}", highlight=False, markup=False)

    def end(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class StopCallback(TrainerCallback):
    """Ends training after the current step, with a checkpoint, on Ctrl-C or when the run's stop file appears."""

    def __init__(self, run: RunDir, console: Console):
        self._run = run
        self._console = console
        self._previous: Any = None
        self._asked = False
        self.stopped = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if is_main():
            self._run.stop.unlink(missing_ok=True)
        try:
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        except ValueError:
            self._previous = None  # not the main thread: whoever runs it stops it through the file

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        asked = self._asked or (is_main() and self._run.stop.exists())
        if not self.stopped and anywhere(asked, args.device):  # all processes stop after the same step
            self.stopped = True
            if is_main():
                self._run.stop.unlink(missing_ok=True)
        if self.stopped and state.global_step < state.max_steps:
            control.should_training_stop = True
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped:  # leaving the epoch early would evaluate and save once more
            control.should_evaluate = control.should_save = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Give Ctrl-C back its usual meaning."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self.restore()
            raise KeyboardInterrupt
        self._asked = True
        self._console.print("\nStopping after this step, with a checkpoint. Ctrl-C again stops at once.")


def describe(entry: dict[str, Any]) -> str:
    """A metrics line in words."""
    parts = []
    if "loss" in entry:
        parts.append(f"loss {entry['loss']:.4f}")
    if "eval_loss" in entry:
        parts.append(f"eval loss {entry['eval_loss']:.4f}")
    parts += [f"{name} {entry[key]:.2f}" for key, name in _SHOWN.items() if entry.get(key) is not None]
    if "learning_rate" in entry:
        parts.append(f"lr {entry['learning_rate']:.2e}")
    if "tokens_per_second" in entry:
        parts.append(f"{entry['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(parts)
