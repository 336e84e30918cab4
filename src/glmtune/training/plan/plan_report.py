"""A plan as text and as JSON."""

from __future__ import annotations

from typing import Any

from glmtune.models.attention_kernels import AMPERE, MATH
from glmtune.training.plan.changes import SettingsChange
from glmtune.training.plan.planner import Plan
from glmtune.utils.console import count_noun, format_bytes, format_duration

_PART_HELP = {
    "weights": "the base",
    "adapter": "trained beside the base, in fp32",
    "gradients": "of the trained weights",
    "optimizer": "the optimiser's state",
    "activations": "kept for the backward pass, and temporary tensors",
    "logits": "at target positions",
    "files": "the weight files while they are read",
    "reference": "copy of the trained weights from before training",
    "own": "libraries, or the CUDA context",
    "kept": "freed, but kept by the allocator",
}


def format_parts(plan: Plan) -> list[tuple[str, str, str]]:
    """Name, size and help of each part, and their total."""
    rows = [(name, format_bytes(size), _PART_HELP[name]) for name, size in plan.estimate.parts.items() if size]
    note = f"for each of {plan.num_processes} processes ({plan.parallelism})" if plan.num_processes > 1 else ""
    return [*rows, ("total", format_bytes(plan.estimate.total), note)]


def format_workload(plan: Plan) -> list[str]:
    """Lines about the data, the steps and, where it was measured, the time."""
    workload = plan.workload
    if workload is None:
        return ["No data given: the weights alone."]
    shortest, median, longest = workload.block_lengths
    largest = plan.largest_batch
    lines = [
        f"Data: {count_noun(workload.rows, 'row')} in {count_noun(workload.blocks, 'block')} "
        f"of {shortest} to {longest} tokens, median {median}; "
        f"the largest micro-batch has {largest['positions']} positions and {largest['targets']} targets.",
        f"Steps: {workload.steps}, about {count_noun(workload.tokens, 'token')}.",
    ]
    if plan.seconds is not None:
        time = format_duration(plan.seconds)
        lines.append(f"Time: at least {time} (a lower bound: matrix products alone, at the rate measured here).")
    return lines


def format_attention(plan: Plan) -> list[str]:
    """A line about the attention kernels of a GPU; none for a CPU."""
    if plan.card is None or not plan.attention:
        return []
    capability = "{}.{}".format(*plan.card.capability)
    if plan.device.is_local:
        card = f"compute capability {capability}"
    elif plan.card.capability < AMPERE.capability:
        card = "a card before Ampere is assumed, because of fp16"
    else:
        card = "a card from Ampere on is assumed; with model.precision=fp16 an older one"
    lines = [f"Attention: {' and '.join(plan.attention)} ({card})."]
    if MATH in plan.attention:
        lines.append("The math kernel writes all scores in fp32: before Ampere, fp16 takes far less memory than bf16.")
    return lines


def format_verdict(plan: Plan) -> list[str]:
    """Lines that say whether the run fits, and what to change if not."""
    lines = [format_memory(plan, forced=False)]
    change = plan.change
    if change and change.fits:
        lines.append(f"The cheapest change that makes it fit: {format_change(change)}.")
    elif change:
        lines.append(f"No change that was tried makes it fit; the smallest is {format_change(change)}.")
    elif plan.verdict != "fits":
        lines.append("There is no setting to change: use a smaller model or a larger GPU.")
    return lines


def format_memory(plan: Plan, forced: bool = True) -> str:
    """The memory of a run in one sentence.

    Args:
        plan: of the run.
        forced: a run that cannot fit is trained all the same.
    """
    estimate = plan.estimate
    text = f"Memory: about {format_bytes(estimate.total)} of {format_bytes(estimate.memory)} ({plan.device.name})"
    if plan.bytes_without_checkpointing:
        some = (
            "" if plan.checkpointed_layers == plan.layers else f" of {plan.checkpointed_layers} of {plan.layers} layers"
        )
        without = format_bytes(plan.bytes_without_checkpointing)
        text += f", with gradient checkpointing{some} (without it {without})"
    elif plan.is_auto:
        text += ", without gradient checkpointing"
    if estimate.verdict == "tight":
        text += "; that is within the estimate's error"
    elif estimate.verdict == "too large":
        text += "; that does not fit" + (", and is tried because of --force" if forced else "")
    return f"{text}."


def format_change(change: SettingsChange) -> str:
    """A change as it is typed, with the memory and the cost of it."""
    settings = " ".join(f"--set {setting}" for setting in change.settings)
    return f"{settings} (about {format_bytes(change.total)}; {change.cost})"


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The plan for `--json`: bytes, per process."""
    estimate, workload, change = plan.estimate, plan.workload, plan.change
    lengths = dict(zip(("shortest", "median", "longest"), workload.block_lengths, strict=True)) if workload else None
    return {
        "verdict": estimate.verdict,
        "bytes": estimate.total,
        "memory_bytes": estimate.memory,
        "device": plan.device.name,
        "moment": estimate.phase,
        "parts": {name: size for name, size in estimate.parts.items() if size},
        "attention": list(plan.attention),
        "processes": plan.num_processes,
        "sharing": plan.parallelism if plan.num_processes > 1 else None,
        "precision": str(plan.precision).removeprefix("torch."),
        "gradient_checkpointing": plan.checkpointing,
        "checkpointed_layers": plan.checkpointed_layers,
        "layers": plan.layers,
        "change": {"settings": list(change.settings), "bytes": change.total, "fits": change.fits} if change else None,
        "largest_batch": plan.largest_batch or None,
        "block_lengths": lengths,
        "rows": workload.rows if workload else None,
        "steps": workload.steps if workload else None,
        "tokens": workload.tokens if workload else None,
        "seconds": plan.seconds,
    }
