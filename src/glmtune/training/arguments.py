"""transformers' `TrainingArguments` from a run's `training:` section."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import TrainingArguments

from glmtune.config import RunConfig, nearest
from glmtune.errors import ConfigError
from glmtune.rundir import RunDir

# The run folder's layout is fixed, and these are what make it so.
_OURS = {
    "output_dir": "output",
    "resume_from_checkpoint": "--resume",
    "do_train": "glmtune train",
    "remove_unused_columns": "data.columns",
}


class Arguments(TrainingArguments):
    """`TrainingArguments` whose warm-up share is rounded down: rounded up, a run of one step would learn nothing."""

    def get_warmup_steps(self, num_training_steps: int) -> int:
        return int(self.warmup_steps if self.warmup_steps >= 1 else num_training_steps * self.warmup_steps)


def pick_precision(asked: str) -> torch.dtype:
    """The precision of the frozen weights: what is asked for, else the best that the device computes in."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if asked != "auto":
        return named[asked]
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def check_training_keys(training: dict[str, Any]) -> None:
    """Raises:
    ConfigError: a key that `TrainingArguments` does not have, or one that the run folder decides.
    """
    known = [f.name for f in dataclasses.fields(TrainingArguments) if f.init]
    for key in training:
        if key in _OURS:
            raise ConfigError(f"training.{key} is decided by glmtune.", f"Use {_OURS[key]} instead.")
        if key not in known:
            raise ConfigError(f"unknown key training.{key}.", nearest(key, known))


def reporters(config: RunConfig) -> list[str]:
    """Where metrics are reported besides the run folder."""
    named = config.training.get("report_to") or []
    listed = [named] if isinstance(named, str) else list(named)
    return [] if listed == ["none"] else listed


def training_arguments(config: RunConfig, run: RunDir, precision: torch.dtype, has_eval: bool) -> TrainingArguments:
    """The arguments of a run.

    Raises:
        ConfigError: an unknown key, or a value that transformers refuses (its own words are passed on).
    """
    check_training_keys(config.training)
    values: dict[str, Any] = dict(config.training)
    if not has_eval:
        values["eval_strategy"] = "no"
    on_gpu = torch.cuda.is_available() and not values.get("use_cpu")
    values.setdefault("use_cpu", not on_gpu)
    if not {"bf16", "fp16"} & set(config.training):
        values["bf16"] = precision is torch.bfloat16
        values["fp16"] = precision is torch.float16 and on_gpu
    values.setdefault("dataloader_pin_memory", on_gpu)
    values.setdefault("label_names", ["labels"])
    values |= {
        "output_dir": str(run.checkpoints),
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,  # the trainer stops at such a loss and says why
        "disable_tqdm": True,  # our own progress bar shows more
        "report_to": [name for name in reporters(config) if name != "tensorboard"],  # its folder is the run's
    }
    try:
        return Arguments(**values)
    except (ValueError, TypeError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"training: {reason}") from None
