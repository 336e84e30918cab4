"""One process's share of a step's memory, when several train together."""

from __future__ import annotations

from collections import Counter
from typing import Any

from glmtune.config import RunConfig
from glmtune.training.deepspeed import zero_stage
from glmtune.training.sharding import uses_fsdp

_SHARED = {
    "ddp": (),
    "zero1": ("optimizer",),
    "zero2": ("optimizer", "gradients"),
    "zero3": ("optimizer", "gradients", "adapter", "weights"),
    "fsdp": ("optimizer", "gradients", "adapter", "weights"),
}


def kind_of(run: RunConfig) -> str:
    """How processes share: `ddp`, `fsdp` or `zero1` to `zero3`."""
    if uses_fsdp(run):
        return "fsdp"
    return f"zero{zero_stage(run)}" if zero_stage(run) else "ddp"


def share_of(parts: Counter[str], kind: str, processes: int, trained: int, gathered: int) -> Counter[str]:
    """The parts of one process.

    Args:
        parts: of a process that trains alone.
        kind: from `kind_of`.
        processes: how many there are.
        trained: bytes of the trained weights.
        gathered: bytes of the weights that are whole for as long as they are at work.
    """
    shared: Any = _SHARED[kind]
    mine = Counter({part: -(-size // processes) if part in shared else size for part, size in parts.items()})
    if kind in ("zero3", "fsdp"):
        mine["weights"] += gathered
    elif processes > 1:
        mine["gradients"] += trained  # buckets that are sent, a second copy
    return mine
