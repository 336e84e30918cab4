"""transformers' `TrainingArguments` from a run's `training:` section."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_type_hints

import torch
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from glmtune.config import TRAINING_DEFAULTS, RunConfig
from glmtune.config_parsing import nearest
from glmtune.errors import ConfigError, first_line
from glmtune.run_dir import RunDir

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


_AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


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
    ConfigError: a key that `TrainingArguments` does not have, one that the run folder decides, or text or a number
        below its least where a number belongs.
    """
    hints = get_type_hints(TrainingArguments)
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    for key, value in training.items():
        if key in _OURS:
            raise ConfigError(f"training.{key} is decided by glmtune.", f"Use {_OURS[key]} instead.")
        if key not in known:
            raise ConfigError(f"unknown key training.{key}.", nearest(key, known))
        kinds = set(get_args(hints[key]) or (hints[key],))
        numeric = bool(kinds & {int, float}) and str not in kinds
        if numeric and value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ConfigError(f"training.{key} must be a number, not {value!r}.")
        if key in _AT_LEAST_ONE and value < 1:
            raise ConfigError(f"training.{key} is {value}; it must be at least 1.")


def checkpointing_asked(config: RunConfig) -> bool | str:
    """Whether activations are to be computed again in the backward pass: true, false, or `auto`, as the memory plan
    decides. transformers has two names for it, of which the newer counts."""
    for key in ("activation_checkpointing", "gradient_checkpointing"):
        value = config.training.get(key)
        if value is None:
            continue
        word = str(value).lower()  # a form gives text
        if word not in ("auto", "true", "false"):
            raise ConfigError(f"training.{key} cannot be {value!r}.", "One of: true, false, auto.")
        return "auto" if word == "auto" else word == "true"
    return False


def reporters(config: RunConfig) -> list[str]:
    """Where metrics are reported besides the run folder."""
    named = config.training.get("report_to") or []
    listed = [named] if isinstance(named, str) else list(named)
    return [] if listed == ["none"] else listed


def _keep_the_best(values: dict[str, Any], config: RunConfig) -> None:
    """The best checkpoint is one that was evaluated: unless both are told otherwise, save when evaluating."""
    if config.early_stopping:
        values.setdefault("load_best_model_at_end", True)
        values.setdefault("restore_callback_states_from_checkpoint", True)  # evaluations without a better one
    if not values.get("load_best_model_at_end"):
        return
    if values["eval_strategy"] == "no":
        wanted = "early_stopping" if config.early_stopping else "training.load_best_model_at_end"
        raise ConfigError(f"{wanted} needs evaluations; training.eval_strategy is no.", "Set it to epoch or steps.")
    if not _told(values, "save"):
        values |= {"save_strategy": values["eval_strategy"], "save_steps": values.get("eval_steps") or 0.1}
    elif not _told(values, "eval"):
        values |= {"eval_strategy": values["save_strategy"], "eval_steps": values["save_steps"]}


def _told(values: dict[str, Any], what: str) -> bool:
    keys = (f"{what}_strategy", f"{what}_steps")
    return any(values.get(key) != TRAINING_DEFAULTS.get(key) for key in keys)


def training_arguments(config: RunConfig, run: RunDir, precision: torch.dtype) -> TrainingArguments:
    """The arguments of a run.

    Raises:
        ConfigError: an unknown key, or a value that transformers refuses (its own words are passed on).
    """
    check_training_keys(config.training)
    values: dict[str, Any] = dict(config.training)
    on_gpu = torch.cuda.is_available() and not values.get("use_cpu")
    values.setdefault("use_cpu", not on_gpu)
    if not {"bf16", "fp16"} & set(config.training):
        values["bf16"] = precision is torch.bfloat16
        values["fp16"] = precision is torch.float16 and on_gpu
    values.setdefault("dataloader_pin_memory", on_gpu)
    values.setdefault("label_names", ["labels"])
    values.setdefault("ddp_find_unused_parameters", False)  # every trained weight is used in every step
    _keep_the_best(values, config)
    values.pop("gradient_checkpointing", None)
    values |= {
        "activation_checkpointing": checkpointing_asked(config) is True,  # auto is decided when the data is known
        "output_dir": str(run.checkpoints),
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,  # the trainer stops at such a loss and says why
        "disable_tqdm": True,  # our own progress bar shows more
        "report_to": [name for name in reporters(config) if name != "tensorboard"],  # its folder is the run's
    }
    try:
        arguments = Arguments(**values)
    except (ValueError, TypeError, ImportError, KeyError) as error:
        reason = first_line(error)
        raise ConfigError(f"training: {reason}") from None
    if arguments.parallel_mode is ParallelMode.NOT_DISTRIBUTED:
        # With several GPUs visible to one process the Trainer would split batches among them by nn.DataParallel,
        # which nobody should use and whose halves the loss could not tell apart. One process uses one GPU.
        arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
