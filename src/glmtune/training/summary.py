"""summary.json: what a run was, how fast it went and where it ended."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import Any

import torch

from glmtune.config import RunConfig
from glmtune.models.loading import DTYPES, Base
from glmtune.training.peak import highest_resident
from glmtune.training.training_data import Rows


def opening(config: RunConfig, base: Base, rows: Rows, precision: torch.dtype, trainable: int) -> dict[str, Any]:
    """What is known before the first step."""
    return {
        "state": "running",
        "model": {
            "path": str(base.folder.resolve()),
            "family": base.family.name,
            "fingerprint": base.fingerprint,
            "precision": precision_name(precision),
        },
        "method": config.method,
        "trainable_parameters": trainable,
        "data": rows.summary,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "versions": versions(),
    }


def closing(trainer: Any, seconds: float, entries: list[dict[str, Any]], finished: bool) -> dict[str, Any]:
    """What the training itself adds.

    Speeds count the steps of this process only; losses are those of the whole run.
    """
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    evaluated = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    return {
        "state": "finished" if finished else "stopped",
        "steps": trainer.state.global_step,
        "epochs": round(float(trainer.state.epoch or 0), 4),
        "seconds": seconds,
        "samples_per_second": round(trainer.samples_seen / max(seconds, 1e-9), 3),
        "tokens_per_second": round(trainer.tokens_seen / max(seconds, 1e-9), 2),
        "peak_memory_bytes": peak_memory(),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "eval_loss": evaluated[-1] if evaluated else None,
        "best_eval_loss": min(evaluated) if evaluated else None,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def peak_memory() -> int | None:
    """Most bytes in use at once: on the GPU if there is one, else by the process; None where neither is known."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return highest_resident()


def versions() -> dict[str, str]:
    """Versions of what computes."""
    names = ("glmtune", "torch", "transformers", "peft", "accelerate", "tokenizers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def precision_name(precision: torch.dtype) -> str:
    """`fp32`, `bf16` or `fp16`."""
    return next(name for name, dtype in DTYPES.items() if dtype is precision)
