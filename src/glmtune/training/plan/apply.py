"""What `train` does with a plan: a line, a decision on checkpointing, and a refusal of what cannot fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.errors import GlmtuneError, TrainingError, first_line
from glmtune.models.loading import Base
from glmtune.training.arguments import checkpointing_asked
from glmtune.training.deepspeed import loaded_whole
from glmtune.training.distributed import is_main, processes, share
from glmtune.training.plan.changes import Change, cheapest_change
from glmtune.training.plan.device import GIB, pick_device
from glmtune.training.plan.make import Plan, plan_for
from glmtune.training.plan.model_spec import subject_of
from glmtune.training.training_data import Rows, say

KEY = "memory_plan"
"""Where summary.json keeps what was planned and decided."""


class TooLargeError(TrainingError):
    """A run that its device has no room for."""


def settle(
    config: RunConfig,
    base: Base,
    arguments: TrainingArguments,
    precision: torch.dtype,
    rows: Rows,
    console: Console,
    *,
    force: bool,
    before: dict[str, Any] | None,
) -> dict[str, Any]:
    """Plan a run before its weights are loaded, and turn checkpointing on or off in `arguments`.

    Args:
        config: of the run.
        base: as it was inspected.
        arguments: their `activation_checkpointing` is set.
        precision: of the frozen weights.
        rows: of the run.
        console: where the line goes.
        force: go on all the same.
        before: summary.json of the run that is resumed: what was decided then stays, so that its numbers stay too.

    Returns:
        For summary.json; `checkpointed_layers` is None where all are and no plan could be made.

    Raises:
        TooLargeError: the estimate exceeds the memory by more than its error, and `force` is not set.
    """
    layers: int | None = None
    if before is not None and checkpointing_asked(config) == "auto":
        kept = before.get(KEY, {})  # runs from before there were plans had none
        layers = kept.get("checkpointed_layers") or None  # runs from before there were such numbers: all
        on = bool(kept.get("checkpointing"))
        config = replace(config, training={**config.training, "activation_checkpointing": on})
    told: dict[str, Any] | TooLargeError | None = None
    if is_main():
        told = _told(config, base, arguments, precision, rows, console, force, layers)
    told = share(told)
    if isinstance(told, TooLargeError):
        raise told
    asked = checkpointing_asked(config)
    decided = bool(told and told["checkpointing"]) if asked == "auto" else bool(asked)
    arguments.activation_checkpointing = arguments.gradient_checkpointing = decided
    if told:
        layers = told["checkpointed_layers"]
    return {KEY: {**(told or {}), "checkpointing": decided, "checkpointed_layers": layers if decided else 0}}


def _told(
    config: RunConfig,
    base: Base,
    arguments: TrainingArguments,
    precision: torch.dtype,
    rows: Rows,
    console: Console,
    force: bool,
    layers: int | None,
) -> dict[str, Any] | TooLargeError | None:
    try:
        device = pick_device(None, bool(arguments.use_cpu))
        with loaded_whole(arguments):  # one process plans: nothing may be shared out meanwhile
            plan, request = plan_for(subject_of(base), config, arguments, precision, rows, device, processes(), layers)
            change = cheapest_change(request) if plan.verdict != "fits" else None
    except GlmtuneError:  # whatever it is, the training itself will say it where it belongs
        return None
    except Exception as error:  # a plan is advice: its faults must not keep anybody from training
        reason = first_line(error, 160)
        say(console, f"No memory plan ({type(error).__name__}: {reason}); please report it.", "yellow")
        return None
    if plan.verdict == "too large" and not force:
        return _refusal(plan, change)
    say(console, line_of(plan), "" if plan.verdict == "fits" else "yellow")
    if change and plan.verdict != "fits":
        say(console, f"To be safe: {advice(change)}.", "yellow")
    made = plan.estimate
    return {
        "bytes": made.total,
        "of": made.memory,
        "moment": made.moment,
        "parts": {name: size for name, size in made.parts.items() if size},
        "checkpointing": plan.checkpointing,
        "checkpointed_layers": plan.recomputed,
    }


def line_of(plan: Plan, forced: bool = True) -> str:
    """What a run needs, in a sentence.

    Args:
        plan: of the run.
        forced: what cannot fit is trained all the same.
    """
    made = plan.estimate
    said = f"Memory: about {gib(made.total)} of {gib(made.memory)} GB ({plan.device.name})"
    if plan.without_checkpointing:
        which = "" if plan.recomputed == plan.layers else f" of {plan.recomputed} of {plan.layers} layers"
        said += f", with gradient checkpointing{which} (without it {gib(plan.without_checkpointing)} GB)"
    elif plan.decided:
        said += ", without gradient checkpointing"
    if made.verdict == "tight":
        said += "; that is within the estimate's error"
    elif made.verdict == "too large":
        said += "; that does not fit" + (", and is tried as --force asks" if forced else "")
    return f"{said}."


def advice(change: Change) -> str:
    """A change as it is typed, and what it gives."""
    settings = " ".join(f"--set {setting}" for setting in change.settings)
    return f"{settings} (about {gib(change.total)} GB; {change.costs})"


def gib(count: float) -> str:
    """Gigabytes of 2**30 bytes."""
    return f"{count / GIB:.1f}" if count >= GIB / 10 else f"{count / GIB:.2f}"


def _refusal(plan: Plan, change: Change | None) -> TooLargeError:
    made = plan.estimate
    if change and change.fits:
        hint = f"This makes it fit: {advice(change)}. Or go on all the same with --force."
    elif change:
        hint = f"Nothing tried makes it fit; the least is {advice(change)}. Or go on all the same with --force."
    else:
        hint = "Take a smaller model or a larger GPU, or go on all the same with --force."
    needs = f"This run needs about {gib(made.total)} GB"
    return TooLargeError(f"{needs}; there are {gib(made.memory)} GB ({plan.device.name}).", hint)
