"""Old names and values of `TrainingArguments` (transformers 4.27 to 4.57), in those of transformers 5.23."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmtune.config import TRAINING_DEFAULTS
from glmtune.config_parsing import as_number
from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import TRAINING_SWITCHES
from glmtune.migrate.values import is_true

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "xpu_backend": "ddp_backend",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "torchdynamo": "torch_compile_backend",
}
"""Keys with another name today and the same values."""

RESHAPED = {
    "warmup_ratio": "warmup_steps",
    "group_by_length": "train_sampling_strategy",
    "adafactor": "optim",
}
"""Keys whose meaning another key has today, with other values."""

_EVAL = "replies are generated and scored by `glmtune eval RUN`, not in the middle of training"
_TPU = "there is no training on TPUs here"
GONE = {
    "overwrite_output_dir": "a run is never written over another: choose another output, or remove the old one",
    "logging_dir": "the curves lie in the run folder",
    "save_safetensors": "always safetensors",
    "include_inputs_for_metrics": _EVAL,
    "predict_with_generate": _EVAL,
    "generation_max_length": _EVAL,
    "generation_num_beams": _EVAL,
    "generation_config": _EVAL,
    "sortish_sampler": "it sorted a kind of data set that is gone; training.train_sampling_strategy sorts by length",
    "remove_unused_columns": "columns are chosen by data.columns",
    "include_tokens_per_second": "always measured",
    "use_mps_device": "a device that is there is found",
    "jit_mode_eval": "no effect on the result",
    "use_ipex": "no effect on the result",
    "fp16_opt_level": "a level of apex, which is gone",
    "fp16_backend": "always torch's own",
    "half_precision_backend": "always torch's own",
    "tpu_num_cores": _TPU,
    "tpu_metrics_debug": _TPU,
    "use_legacy_prediction_loop": "the loop is gone",
    "mp_parameters": "read by SageMaker only",
    "ray_scope": "for searches with Ray only",
    "dispatch_batches": "every process reads its own rows",
    "_n_gpu": "one process uses one GPU",
}
"""Keys without a meaning today, and why."""

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "past_index": ((-1,), "These models have no such state."),
    "sharded_ddp": (("",), "Shard with training.fsdp, or training.deepspeed."),
    "split_batches": ((False,), "Set training.per_device_train_batch_size to the share of one device."),
    "fsdp_min_num_params": ((0,), "Set training.fsdp_config: {min_num_params: N}."),
    "fsdp_transformer_layer_cls_to_wrap": ((), "Set training.fsdp_config: {transformer_layer_cls_to_wrap: NAME}."),
    "push_to_hub_organization": ((), "Set training.hub_model_id: ORGANISATION/NAME."),
}
"""Keys that cannot be honoured except with these values, and what to do instead."""

OLD_KEYS = frozenset({*RENAMED, *RESHAPED, *GONE, *REFUSED})
"""Every key that is old."""

_SWITCHES = """
    overwrite_output_dir no_cuda group_by_length adafactor save_safetensors include_inputs_for_metrics
    predict_with_generate sortish_sampler include_tokens_per_second use_mps_device jit_mode_eval use_ipex
    tpu_metrics_debug use_legacy_prediction_loop dispatch_batches split_batches
"""
OLD_SWITCHES = frozenset(_SWITCHES.split())
"""Old keys that may stand without a value."""

_OPTIMIZERS = {"adamw_hf": "adamw_torch", "adamw_apex_fused": "adamw_torch_fused"}
_NEEDS_GPU = ("fp16", "fp16_full_eval", "tf32")
_NEEDS_AMPERE = ("bf16", "bf16_full_eval", "tf32")

SCRIPT_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 8,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "logging_steps": 500,
    "logging_first_step": False,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": None,
    "train_sampling_strategy": "random",
    "seed": 42,
}
"""What the old scripts did where they were told nothing: transformers' own defaults."""


def modern_training(
    training: Mapping[str, Any], *, cuda: bool = True, bf16: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """A `training:` section in today's names, and a note for everything that was changed.

    Keys of today stay as they are, misspelt ones too: whoever builds `TrainingArguments` checks those.

    Args:
        training: keys and values as transformers 4 or 5 knew them.
        cuda: whether the machine has a GPU; without one fp16, tf32 and the optimisers of bitsandbytes are left out.
        bf16: whether its GPU computes in bf16 and tf32.

    Raises:
        ConfigError: an old key that cannot be honoured, or one that contradicts its new name.
    """
    modern = {key: value for key, value in training.items() if key not in OLD_KEYS}
    notes: list[str] = []
    for key, value in training.items():
        if key in RENAMED:
            _rename(key, value, modern, notes)
        elif key in RESHAPED:
            _reshape(key, value, modern, notes)
        elif key in GONE:
            notes.append(f"training.{key}: {GONE[key]}.")
        elif key in REFUSED:
            _refuse(key, value, notes)
    _mend_optimizer(modern, notes, cuda)
    _leave_out_precisions(modern, notes, cuda, bf16)
    return modern, notes


def script_training(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The whole `training:` section of an old script: its own keys over the defaults it relied on."""
    modern, notes = modern_training({key: _value(key, value) for key, value in given.items()})
    for what in ("eval", "save", "logging"):  # YAML 1.1 reads `no` as false
        if modern.get(f"{what}_strategy") is False:
            modern[f"{what}_strategy"] = "no"
    return {**SCRIPT_DEFAULTS, **modern}, notes


def _value(key: str, value: Any) -> Any:
    if key in TRAINING_SWITCHES | OLD_SWITCHES and value is not None:
        return is_true(value, f"training.{key}", "training")
    return as_number(value) if key != "run_name" else value


def _rename(key: str, value: Any, modern: dict[str, Any], notes: list[str]) -> None:
    new = RENAMED[key]
    if key == "evaluation_strategy" and value is False:
        value = "no"
    if new in modern and modern[new] not in (value, TRAINING_DEFAULTS.get(new)):
        raise ConfigError(f"training.{key} and training.{new} contradict each other.", f"Keep training.{new} alone.")
    modern[new] = value
    notes.append(f"training.{key} is called {new} today.")


def _reshape(key: str, value: Any, modern: dict[str, Any], notes: list[str]) -> None:
    value = as_number(value)
    if key == "warmup_ratio":
        if not 0 <= (value or 0) < 1:
            raise ConfigError(f"training.warmup_ratio is {value}; it must be from 0 to below 1.")
        if as_number(modern.get("warmup_steps")) not in (None, 0, TRAINING_DEFAULTS["warmup_steps"]):
            notes.append("training.warmup_ratio: warmup_steps is given too and counts, as it did before.")
            return
        modern["warmup_steps"] = value or 0
        notes.append(f"training.warmup_ratio {value} is warmup_steps {value or 0} today: a share of all steps.")
    elif key == "group_by_length":
        modern["train_sampling_strategy"] = "group_by_length" if value else "random"
        notes.append(f"training.group_by_length is train_sampling_strategy {modern['train_sampling_strategy']} today.")
    elif value:
        modern["optim"] = "adafactor"
        notes.append("training.adafactor is optim adafactor today.")


def _refuse(key: str, value: Any, notes: list[str]) -> None:
    harmless, hint = REFUSED[key]
    if value is not None and value not in harmless:
        raise ConfigError(f"training.{key} {value} is gone from transformers.", hint)
    notes.append(f"training.{key}: no effect with this value.")


def _mend_optimizer(modern: dict[str, Any], notes: list[str], cuda: bool) -> None:
    name = str(modern.get("optim") or "")
    if name in _OPTIMIZERS:
        modern["optim"] = _OPTIMIZERS[name]
        notes.append(f"training.optim {name} is gone; {_OPTIMIZERS[name]} computes the same.")
    elif not cuda and (name.startswith("paged_") or "8bit" in name or "bnb" in name):
        modern["optim"] = "adamw_torch"
        notes.append(f"training.optim {name} needs a GPU; adamw_torch here.")


def _leave_out_precisions(modern: dict[str, Any], notes: list[str], cuda: bool, bf16: bool) -> None:
    missing = {} if cuda else dict.fromkeys(_NEEDS_GPU, "there is no GPU")
    if cuda and not bf16:
        missing = dict.fromkeys(_NEEDS_AMPERE, "the GPU does not have it")
    for key, why in missing.items():
        if modern.get(key):
            del modern[key]
            notes.append(f"training.{key}: left out, {why}.")
