"""summary.json: the settings of a run, its speed and its losses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from glmtune.config import RunConfig
from glmtune.models.checkpoints import Checkpoint
from glmtune.models.devices import describe_device
from glmtune.models.loading import DTYPES
from glmtune.training.memory import PeakMemory, read_peak_memory
from glmtune.training.training_data import TrainingData
from glmtune.utils.installation import collect_versions


def describe_run(
    config: RunConfig,
    base: Checkpoint,
    data: TrainingData,
    precision: torch.dtype,
    trainable: int,
    device: torch.device,
) -> dict[str, Any]:
    """Describe a run before its first step."""
    return {
        "state": "running",
        "model": {
            "path": str(base.folder.resolve()),
            "family": base.family.name,
            "fingerprint": base.fingerprint,
            "precision": name_precision(precision),
        },
        "method": config.method,
        "trainable_parameters": trainable,
        "data": data.summary,
        "device": describe_device(device),
        "versions": collect_versions(),
    }


SPEED_KEYS = (
    "seconds",
    "samples_per_second",
    "tokens_per_second",
    *(field.name for field in fields(PeakMemory)),
)


def describe_result(trainer: Any, seconds: float, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Describe what the training gave: speeds since its start or resumption, losses of the complete run.

    `eval_loss` is that of the weights that are kept: of the best checkpoint with `load_best_model_at_end`.
    """
    losses = [entry["loss"] for entry in entries if entry.get("loss") is not None]
    evaluations = [entry for entry in entries if entry.get("eval_loss") is not None]
    eval_losses = [entry["eval_loss"] for entry in evaluations]
    rewards = [entry["reward"] for entry in entries if entry.get("reward") is not None]  # of stage grpo
    state = trainer.state
    is_best = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    kept_step = state.best_global_step if is_best else state.global_step
    kept = [entry["eval_loss"] for entry in evaluations if entry["step"] == kept_step] if is_best else eval_losses
    return {
        "steps": trainer.state.global_step,
        "epochs": round(float(trainer.state.epoch or 0), 4),
        "seconds": seconds,
        "samples_per_second": round(trainer.samples_seen / max(seconds, 1e-9), 3),
        "tokens_per_second": round(trainer.tokens_seen / max(seconds, 1e-9), 2),
        **asdict(read_peak_memory(trainer.args.device.type == "cuda")),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "kept_step": kept_step,
        "eval_loss": kept[-1] if kept else None,
        "best_eval_loss": min(eval_losses) if eval_losses else None,
        **({"first_reward": rewards[0], "last_reward": rewards[-1]} if rewards else {}),
    }


def name_precision(precision: torch.dtype) -> str:
    """`fp32`, `bf16` or `fp16`."""
    return next(name for name, dtype in DTYPES.items() if dtype is precision)


@dataclass(frozen=True)
class DataSummary:
    """The entry `data` of summary.json, as far as reports show it."""

    train_rows: int | None
    eval_rows: int | None
    sources: list[dict[str, Any]]
    lines_left_out: int | None
    train: dict[str, Any] | None
    """What the length limits dropped and cut of the training rows."""
    eval: dict[str, Any] | None
    blocks: int | None


@dataclass(frozen=True)
class RunSummary:
    """summary.json, as far as reports show it. What a running training does not know yet is None."""

    state: str | None
    model: dict[str, Any]
    method: str | None
    trainable_parameters: int | None
    data: DataSummary | None
    device: str | None
    versions: dict[str, Any]
    steps: int | None
    epochs: float | None
    seconds: float | None
    samples_per_second: float | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    peak_reserved_bytes: int | None
    outside_allocator_bytes: int | None
    first_loss: float | None
    last_loss: float | None
    eval_loss: float | None
    best_eval_loss: float | None
    finished_at: str | None

    @property
    def peak_device_bytes(self) -> int | None:
        """What `nvidia-smi` showed at the peak; None on a CPU."""
        return PeakMemory(self.peak_memory_bytes, self.peak_reserved_bytes, self.outside_allocator_bytes).on_device
