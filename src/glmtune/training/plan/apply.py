"""What `train` does with a plan: it prints a line, decides on checkpointing, and refuses a run that cannot fit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.errors import GlmtuneError, TrainingError, summarize_error
from glmtune.models.checkpoints import Checkpoint
from glmtune.models.tokenizers.new_tokens import NewTokens
from glmtune.training.arguments import read_checkpointing
from glmtune.training.deepspeed import without_zero_init
from glmtune.training.distributed import broadcast_object, count_processes, is_main_process
from glmtune.training.plan.changes import SettingsChange, find_cheapest_change
from glmtune.training.plan.device import pick_device
from glmtune.training.plan.model_spec import ModelSpec
from glmtune.training.plan.plan_report import format_change, format_memory
from glmtune.training.plan.planner import Plan, plan_run
from glmtune.training.training_data import TrainingData
from glmtune.utils.console import format_bytes, print_message, print_warning

SUMMARY_KEY = "memory_plan"
"""Key of summary.json with the plan and its decision."""


class TooLargeError(TrainingError):
    """A run that does not fit its device's memory."""


@dataclass(frozen=True)
class PlanDecision:
    """What a plan decides about a run."""

    checkpointing: bool
    checkpointed_layers: int | None
    """Number of layers, from the first, that are checkpointed; None: all, and no plan could be made."""
    estimate: dict[str, Any] = field(default_factory=dict)
    """Of the plan, for summary.json; empty if no plan could be made."""

    def to_summary(self) -> dict[str, Any]:
        """The entry of summary.json."""
        decision = {"checkpointing": self.checkpointing, "checkpointed_layers": self.checkpointed_layers}
        return {SUMMARY_KEY: self.estimate | decision}


def apply_plan(
    config: RunConfig,
    base: Checkpoint,
    arguments: TrainingArguments,
    precision: torch.dtype,
    training_data: TrainingData,
    *,
    force: bool,
    previous_summary: dict[str, Any] | None,
    new_tokens: NewTokens | None = None,
) -> PlanDecision:
    """Plan a run before its weights are loaded, and decide which layers are checkpointed.

    Args:
        config: of the run.
        base: as it was inspected.
        arguments: of the run; they are not changed.
        precision: of the frozen weights.
        training_data: of the run.
        force: train even if the run cannot fit.
        previous_summary: summary.json of the run that is resumed: its decision is kept, so that its numbers stay the
            same.
        new_tokens: that the run adds to the base's vocabulary.

    Raises:
        TooLargeError: the estimate exceeds the memory by more than its error, and `force` is not set.
    """
    layers: int | None = None
    if previous_summary is not None and read_checkpointing(config) == "auto":
        previous = previous_summary.get(SUMMARY_KEY, {})  # absent from runs before there were plans
        layers = previous.get("checkpointed_layers") or None  # absent from older runs, which checkpointed all
        is_on = bool(previous.get("checkpointing"))
        config = replace(config, training={**config.training, "activation_checkpointing": is_on})
    decision: PlanDecision | TooLargeError | None = None
    if is_main_process():
        decision = _decide(config, base, arguments, precision, training_data, force, layers, new_tokens)
    decision = broadcast_object(decision)
    if isinstance(decision, TooLargeError):
        raise decision
    checkpointing = read_checkpointing(config)
    if checkpointing == "auto":
        checkpointing = decision is not None and decision.checkpointing
    if decision is not None:
        layers = decision.checkpointed_layers
    return PlanDecision(
        bool(checkpointing), layers if checkpointing else 0, decision.estimate if decision is not None else {}
    )


def _decide(
    config: RunConfig,
    base: Checkpoint,
    arguments: TrainingArguments,
    precision: torch.dtype,
    training_data: TrainingData,
    force: bool,
    layers: int | None,
    new_tokens: NewTokens | None,
) -> PlanDecision | TooLargeError | None:
    """Plan in the main process and print the result; None where no plan can be made."""
    try:
        device = pick_device(None, bool(arguments.use_cpu))
        spec = ModelSpec.from_base(base).with_tokens(new_tokens)
        with without_zero_init(arguments):  # one process plans: nothing may be sharded meanwhile
            plan, request = plan_run(
                spec, config, arguments, precision, training_data, device, count_processes(), layers
            )
            change = find_cheapest_change(request) if plan.verdict != "fits" else None
    except GlmtuneError:  # the training reports it where it occurs
        return None
    except Exception as error:  # an error of a plan must not prevent training
        reason = summarize_error(error, 160)
        print_warning(f"No memory plan ({type(error).__name__}: {reason}); please report it.")
        return None
    if plan.verdict == "too large" and not force:
        return _make_error(plan, change)
    print_message(format_memory(plan), "" if plan.verdict == "fits" else "yellow")
    if change and plan.verdict != "fits":
        print_warning(f"To be safe: {format_change(change)}.")
    estimate = plan.estimate
    summary = {
        "bytes": estimate.total,
        "of": estimate.memory,
        "moment": estimate.phase,
        "parts": {name: size for name, size in estimate.parts.items() if size},
    }
    return PlanDecision(plan.checkpointing, plan.checkpointed_layers, summary)


def _make_error(plan: Plan, change: SettingsChange | None) -> TooLargeError:
    if change and change.fits:
        hint = f"This makes it fit: {format_change(change)}. Or train all the same with --force."
    elif change:
        hint = f"Nothing that was tried makes it fit; the smallest is {format_change(change)}. Or train with --force."
    else:
        hint = "Use a smaller model or a larger GPU, or train all the same with --force."
    size, memory = format_bytes(plan.estimate.total), format_bytes(plan.estimate.memory)
    return TooLargeError(f"This run needs about {size}; there are {memory} ({plan.device.name}).", hint)
