"""What happens beside the training steps: metrics and progress on disk, progress on screen, a clean stop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from glmtune.config_parsing import read_config_file
from glmtune.run_dir import RunDir
from glmtune.training.answer_curves import read_answer_fall
from glmtune.training.distributed import any_rank
from glmtune.training.stage_metrics import OBJECTIVE_METRICS
from glmtune.utils.console import format_duration, get_console, is_main_process, print_message, print_warning
from glmtune.utils.operating_system import list_stop_signals

_LOGGED_KEYS = ("loss", "grad_norm", "learning_rate")
_LOSS_NAMES = {"loss": "loss", "eval_loss": "eval loss"}
_SCORE_NAMES = {
    **{"accuracy": "accuracy", "margin": "margin", "eval_accuracy": "eval accuracy", "eval_margin": "eval margin"},
    **{"reward": "reward", "kl": "KL", "completion_length": "tokens per answer", "eval_reward": "eval reward"},
    **{"eval_rouge_l": "ROUGE-L", "eval_bleu4_characters": "BLEU-4"},
}
# Seconds between two writes of progress.json.
_PROGRESS_INTERVAL = 1.0


class SpeedMeter:
    """Tokens per second and time left, from the Trainer's own counters."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._first_step = self._tokens = 0

    def begin(self, state: TrainerState) -> None:
        """Start counting at `state`: a resumed run has earlier steps and tokens."""
        self._start = self._last = time.monotonic()
        self._first_step = state.global_step
        self._tokens = int(state.num_input_tokens_seen)

    def tokens_per_second(self, state: TrainerState) -> float:
        """Non-padding tokens per second since the last call."""
        now, tokens = time.monotonic(), int(state.num_input_tokens_seen)
        rate = (tokens - self._tokens) / max(now - self._last, 1e-9)
        self._last, self._tokens = now, tokens
        return rate

    def leave_out(self, seconds: float) -> None:
        """Leave out time that went into an evaluation."""
        self._last += seconds

    def seconds_elapsed(self) -> float:
        """Seconds since `begin`."""
        return time.monotonic() - self._start

    def seconds_left(self, state: TrainerState) -> float | None:
        """Estimate from the mean step so far; None before the first."""
        steps = state.global_step - self._first_step
        if steps <= 0:
            return None
        return self.seconds_elapsed() / steps * (state.max_steps - state.global_step)


class MetricsCallback(TrainerCallback):
    """Writes metrics.jsonl and progress.json, and shows the same numbers on the screen."""

    def __init__(self, run: RunDir, display: ProgressDisplay, metric_names: Sequence[str] = ()):
        """Write for a run.

        Args:
            run: its folder.
            display: the screen.
            metric_names: of the objective, which are written with the loss.
        """
        self._run = run
        self._display = display
        self._logged_keys = tuple(dict.fromkeys((*_LOGGED_KEYS, *OBJECTIVE_METRICS, *metric_names)))
        self._meter = SpeedMeter()
        self._last_entry: dict[str, Any] = {}
        self._last_write = -math.inf
        self._is_fall_shown = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._meter.begin(state)
        self._display.begin(state.global_step, state.max_steps)
        self._write_progress(state, "training", force=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._display.show_step(state.global_step, self._meter.seconds_left(state))
        if state.global_step >= state.max_steps:
            control.should_log = True  # so that the last loss is logged
        self._write_progress(state, "training")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._write_progress(state, "evaluating")

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
            entry |= {key: logs[key] for key in self._logged_keys if key in logs}
            entry["tokens_per_second"] = round(self._meter.tokens_per_second(state), 2)
        entry |= {key: value for key, value in logs.items() if key.startswith("eval_")}
        # An overflow in fp16 gives an infinite norm, which JSON has no number for.
        entry = {key: value if math.isfinite(value) else None for key, value in entry.items()}
        if len(entry) == 2:
            return  # the Trainer's last log, whose numbers are in summary.json
        self._run.append_metrics(entry)
        self._display.show_metrics(entry)
        self._last_entry |= entry
        if "eval_better_logp" in entry:
            self._warn_of_fall()
        self._write_progress(state, "training", force=True)

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
        self._display.end()
        if state.is_world_process_zero and "better_logp" in self._last_entry:
            self._warn_of_fall()
        self._write_progress(state, "saving", force=True)

    def _warn_of_fall(self) -> None:
        """Warn once if both answers of pairs became less likely."""
        if self._is_fall_shown or not self._run.config.is_file():
            return
        fall = read_answer_fall(self._run, read_config_file(self._run.config))
        if fall is not None:
            self._is_fall_shown = True
            print_warning(fall.describe("en"))

    def _write_progress(self, state: TrainerState, phase: str, force: bool = False) -> None:
        now = time.monotonic()
        if not is_main_process() or (not force and now - self._last_write < _PROGRESS_INTERVAL):
            return
        self._last_write = now
        self._run.write_progress(
            phase,
            step=state.global_step,
            max_steps=state.max_steps,
            epoch=round(float(state.epoch or 0), 4),
            seconds=round(self._meter.seconds_elapsed(), 1),
            eta_seconds=self._meter.seconds_left(state),
            loss=self._last_entry.get("loss"),
            eval_loss=self._last_entry.get("eval_loss"),
            tokens_per_second=self._last_entry.get("tokens_per_second"),
        )


class ProgressDisplay:
    """A bar with loss, tokens/s and the time left; plain lines where the output is no terminal."""

    def __init__(self) -> None:
        self._console = get_console()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._max_steps = 0
        self._seconds_left: float | None = None

    def begin(self, step: int, max_steps: int) -> None:
        """Show the bar."""
        self._max_steps = max_steps
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
        self._task = self._bar.add_task("", total=max_steps, completed=step, numbers="", eta=format_duration(None))
        self._bar.start()

    def show_step(self, step: int, seconds_left: float | None) -> None:
        """Move the bar."""
        self._seconds_left = seconds_left
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, eta=format_duration(seconds_left))

    def show_metrics(self, entry: dict[str, Any]) -> None:
        """Show an entry of metrics.jsonl."""
        text = format_metrics(entry)
        if self._bar is None or self._task is None:
            step = f"step {entry['step']}/{self._max_steps}"
            self._console.print(f"{step}  {text}  ETA {format_duration(self._seconds_left)}", highlight=False)
        elif "loss" in entry:
            self._bar.update(self._task, numbers=text)
        else:
            self._bar.console.print(f"step {entry['step']}: {text}", highlight=False, markup=False)

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class StopCallback(TrainerCallback):
    """Ends training after the current step, with a checkpoint: on Ctrl-C, on SIGTERM, which schedulers and containers
    send before they kill, or when the run's stop file appears."""

    def __init__(self, run: RunDir):
        self._run = run
        self._previous_handlers: dict[int, Any] = {}
        self._is_requested = False
        self.is_stopped = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if is_main_process():
            self._run.stop.unlink(missing_ok=True)
        for number in list_stop_signals():
            with suppress(ValueError):  # not the main thread: stopped through the file only
                self._previous_handlers[number] = signal.signal(number, self._handle_signal)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        is_requested = self._is_requested or (is_main_process() and self._run.stop.exists())
        if not self.is_stopped and any_rank(is_requested, args.device):  # all processes stop after the same step
            self.is_stopped = True
            if is_main_process():
                self._run.stop.unlink(missing_ok=True)
        if self.is_stopped and state.global_step < state.max_steps:
            control.should_training_stop = True
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.is_stopped:  # leaving the epoch early would evaluate and save once more
            control.should_evaluate = control.should_save = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore_signals()

    def restore_signals(self) -> None:
        """Restore the previous handlers."""
        while self._previous_handlers:
            number, handler = self._previous_handlers.popitem()
            if handler is not None:  # None: not one of Python's
                signal.signal(number, handler)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_requested:
            if number == signal.SIGTERM:
                return  # schedulers repeat it
            self.restore_signals()
            raise KeyboardInterrupt
        self._is_requested = True
        again = " Ctrl-C again stops at once." if number == signal.SIGINT else ""
        print_message(f"\nStopping after this step, with a checkpoint.{again}")


class CheckpointFirstLayers(TrainerCallback):
    """Restricts gradient checkpointing to the first layers, after the Trainer has enabled it for all.

    The first ones, because when they are recomputed, the activations of the others have been freed.
    """

    def __init__(self, layers: int):
        self._layers = layers

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        checkpoint_first_layers(kwargs["model"], self._layers)


class ProbeBeforeFirstStep(TrainerCallback):
    """Calls a function with the prepared, perhaps sharded model before the first step."""

    def __init__(self, probe: Callable[[Any], None]):
        self._probe = probe

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._probe(kwargs["model"])


def checkpoint_first_layers(model: nn.Module, layers: int) -> None:
    """Of a model with gradient checkpointing, keep it for the first `layers` only."""
    for index, layer in enumerate(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)):
        layer.gradient_checkpointing = index < layers


def format_metrics(entry: dict[str, Any]) -> str:
    """An entry of metrics.jsonl as a line of text."""
    numbers = {key: value for key, value in entry.items() if value is not None}  # null: not finite
    parts = [f"{name} {numbers[key]:.4f}" for key, name in _LOSS_NAMES.items() if key in numbers]
    parts += [f"{name} {numbers[key]:.2f}" for key, name in _SCORE_NAMES.items() if key in numbers]
    if "learning_rate" in numbers:
        parts.append(f"lr {numbers['learning_rate']:.2e}")
    if "tokens_per_second" in numbers:
        parts.append(f"{numbers['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(parts)
