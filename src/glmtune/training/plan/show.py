"""A plan in words and as JSON."""

from __future__ import annotations

from typing import Any

from glmtune.training.plan.apply import advice, gib, line_of
from glmtune.training.plan.make import Plan
from glmtune.utils.console import format_duration

_MEANING = {
    "weights": "the base, as it is held",
    "adapter": "what is trained beside it, in fp32",
    "gradients": "of what is trained",
    "optimizer": "the optimiser's state",
    "activations": "what a step keeps and computes with",
    "logits": "at the positions that are targets",
    "files": "the weight files while they are read",
    "own": "libraries, or the CUDA context",
    "kept": "freed, but kept back by the allocator",
}


def part_rows(plan: Plan) -> list[tuple[str, str, str]]:
    """Name, gigabytes and meaning of each part, and their sum."""
    rows = [(name, gib(size), _MEANING[name]) for name, size in plan.estimate.parts.items() if size]
    each = f"for each of {plan.processes} processes ({plan.sharing})" if plan.processes > 1 else ""
    return [*rows, ("in all", gib(plan.estimate.total), each)]


def work_lines(plan: Plan) -> list[str]:
    """What the run is fed, and how long it takes where that can be told."""
    work = plan.work
    if work is None:
        return ["No data given: the weights alone."]
    shortest, median, longest = work.lengths
    spread = f"{shortest} to {longest} tokens, median {median}"
    largest = plan.largest
    lines = [
        f"Data: {work.rows} rows in {work.blocks} blocks of {spread}; the largest micro-batch has "
        f"{largest['positions']} positions and {largest['targets']} targets.",
        f"Steps: {work.steps}, about {work.tokens:,} tokens.",
    ]
    if plan.seconds is not None:
        least = format_duration(plan.seconds)
        lines.append(f"Time: at least {least} (rough: the matrix products alone, at the rate measured here).")
    return lines


def answer(plan: Plan) -> list[str]:
    """Whether it fits, and what to change if not."""
    lines = [line_of(plan, forced=False)]
    change = plan.change
    if change and change.fits:
        lines.append(f"The cheapest change that makes it fit: {advice(change)}.")
    elif change:
        lines.append(f"No change that was tried makes it fit; the least is {advice(change)}.")
    elif plan.verdict != "fits":
        lines.append("There is no setting to change: take a smaller model or a larger GPU.")
    return lines


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan for `--json`: bytes, per process."""
    made, work, change = plan.estimate, plan.work, plan.change
    return {
        "verdict": made.verdict,
        "bytes": made.total,
        "memory_bytes": made.memory,
        "device": plan.device.name,
        "moment": made.moment,
        "parts": {name: size for name, size in made.parts.items() if size},
        "processes": plan.processes,
        "sharing": plan.sharing if plan.processes > 1 else None,
        "precision": str(plan.precision).removeprefix("torch."),
        "gradient_checkpointing": plan.checkpointing,
        "checkpointed_layers": plan.recomputed,
        "layers": plan.layers,
        "change": {"settings": list(change.settings), "bytes": change.total, "fits": change.fits} if change else None,
        "largest_batch": plan.largest or None,
        "block_lengths": dict(zip(("shortest", "median", "longest"), work.lengths, strict=True)) if work else None,
        "rows": work.rows if work else None,
        "steps": work.steps if work else None,
        "tokens": work.tokens if work else None,
        "seconds": plan.seconds,
    }
