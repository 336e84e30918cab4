"""Names of `TrainingArguments` in transformers 5.23, and the translation of those of transformers 4.27 to 4.57."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmtune.config import TRAINING_DEFAULTS
from glmtune.config_parsing import parse_number
from glmtune.errors import ConfigError

_KEYS = """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim_target_modules gradient_accumulation_steps average_tokens_across_devices max_grad_norm
    label_smoothing_factor bf16 fp16 bf16_full_eval fp16_full_eval tf32 activation_checkpointing
    activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs torch_compile
    torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config use_cache neftune_noise_alpha
    torch_empty_cache_steps auto_find_batch_size logging_strategy logging_steps logging_first_step log_on_each_node
    logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name
    project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay
    per_device_eval_batch_size prediction_loss_only eval_on_start eval_do_concat_batches eval_use_gather_object
    eval_accumulation_steps include_for_metrics batch_eval_metrics save_only_model save_strategy save_steps
    save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id
    hub_strategy hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better
    ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu
    accelerator_config parallelism_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
    remove_unused_columns label_names train_sampling_strategy length_column_name ddp_find_unused_parameters
    ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug
    skip_memory_metrics do_train do_eval do_predict resume_from_checkpoint local_rank
"""
TRAINING_KEYS = frozenset(_KEYS.split())
"""All keys. A test compares them with transformers."""

_SWITCHES = """
    average_tokens_across_devices bf16 fp16 bf16_full_eval fp16_full_eval tf32 activation_checkpointing
    gradient_checkpointing torch_compile use_liger_kernel use_cache auto_find_batch_size logging_first_step
    log_on_each_node logging_nan_inf_filter disable_tqdm prediction_loss_only eval_on_start eval_do_concat_batches
    eval_use_gather_object batch_eval_metrics save_only_model save_on_each_node enable_jit_checkpoint push_to_hub
    hub_private_repo hub_always_push load_best_model_at_end greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism use_cpu dataloader_drop_last dataloader_pin_memory
    dataloader_persistent_workers dataloader_in_order remove_unused_columns ddp_find_unused_parameters
    ddp_broadcast_buffers ddp_static_graph skip_memory_metrics do_train do_eval do_predict
"""
TRAINING_SWITCHES = frozenset(_SWITCHES.split())
"""Keys that are true or false; as flags they may have no value."""

TRAINING_LISTS = frozenset({"report_to", "label_names", "debug", "fsdp", "include_for_metrics", "optim_target_modules"})
"""Keys that take several values on a command line."""

RENAMED_KEYS = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "xpu_backend": "ddp_backend",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "torchdynamo": "torch_compile_backend",
}
"""Keys with a new name and the same values."""

CONVERTED_KEYS = {
    "warmup_ratio": "warmup_steps",
    "group_by_length": "train_sampling_strategy",
    "adafactor": "optim",
}
"""Keys that are values of another key now."""

_GENERATION = "`glmtune eval RUN --data FILE` generates and scores replies; during training: generate.rows"
_TPU = "training on TPUs is not supported"
REMOVED_KEYS = {
    "overwrite_output_dir": "an existing run is never overwritten: choose another output, or remove the old run",
    "logging_dir": "the curves are in the run folder",
    "save_safetensors": "always safetensors",
    "include_inputs_for_metrics": _GENERATION,
    "predict_with_generate": _GENERATION,
    "generation_max_length": _GENERATION,
    "generation_num_beams": _GENERATION,
    "generation_config": _GENERATION,
    "sortish_sampler": "removed from transformers; training.train_sampling_strategy sorts by length",
    "remove_unused_columns": "data.columns chooses the columns",
    "include_tokens_per_second": "always measured",
    "use_mps_device": "an available device is used automatically",
    "jit_mode_eval": "no effect on the result",
    "use_ipex": "no effect on the result",
    "fp16_opt_level": "a setting of apex, which is no longer supported",
    "fp16_backend": "always torch's own",
    "half_precision_backend": "always torch's own",
    "tpu_num_cores": _TPU,
    "tpu_metrics_debug": _TPU,
    "use_legacy_prediction_loop": "removed from transformers",
    "mp_parameters": "used by SageMaker only",
    "ray_scope": "used by hyperparameter search with Ray only",
    "dispatch_batches": "every process reads its own rows",
    "_n_gpu": "one process uses one GPU",
}
"""Keys that are ignored, and why."""

UNSUPPORTED_KEYS: dict[str, tuple[tuple[Any, ...], str]] = {
    "past_index": ((-1,), "These models have no such state."),
    "sharded_ddp": (("",), "Shard with training.fsdp, or training.deepspeed."),
    "split_batches": ((False,), "Set training.per_device_train_batch_size to the batch size of one device."),
    "fsdp_min_num_params": ((0,), "Set training.fsdp_config: {min_num_params: N}."),
    "fsdp_transformer_layer_cls_to_wrap": ((), "Set training.fsdp_config: {transformer_layer_cls_to_wrap: NAME}."),
    "push_to_hub_organization": ((), "Set training.hub_model_id: ORGANISATION/NAME."),
}
"""Keys that are errors except with these values, and what to set instead."""

OLD_KEYS = frozenset({*RENAMED_KEYS, *CONVERTED_KEYS, *REMOVED_KEYS, *UNSUPPORTED_KEYS})
"""All old keys."""

_OLD_SWITCHES = """
    overwrite_output_dir no_cuda group_by_length adafactor save_safetensors include_inputs_for_metrics
    predict_with_generate sortish_sampler include_tokens_per_second use_mps_device jit_mode_eval use_ipex
    tpu_metrics_debug use_legacy_prediction_loop dispatch_batches split_batches
"""
OLD_SWITCHES = frozenset(_OLD_SWITCHES.split())
"""Old keys that as flags may have no value."""

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
"""Defaults of transformers 4, which the old scripts rely on."""

_OPTIMIZERS = {"adamw_hf": "adamw_torch", "adamw_apex_fused": "adamw_torch_fused"}
_TRUE = {"true", "t", "yes", "y", "1"}
_FALSE = {"false", "f", "no", "n", "0"}


def is_bool_text(text: str) -> bool:
    """Return whether a word can be the value of a switch."""
    return text.lower() in _TRUE | _FALSE


def parse_bool(value: Any, label: str, source: str) -> bool:
    """Return the value of a switch; None is false.

    Args:
        value: from YAML, JSON or a command line.
        label: the key as the user wrote it, for the message.
        source: for the message.

    Raises:
        ConfigError: neither true nor false.
    """
    if isinstance(value, bool) or value is None:
        return bool(value)
    if is_bool_text(str(value)):
        return str(value).lower() in _TRUE
    raise ConfigError(f"{source}: {label} must be true or false, not {value!r}.")


def update_training_keys(
    section: Mapping[str, Any], *, cuda: bool = True, bf16: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """Translate a `training:` section to the keys of transformers 5.

    Keys of transformers 5 and unknown keys are not changed; `check_training_keys` finds the unknown ones.

    Args:
        section: keys and values of transformers 4 or 5.
        cuda: whether the machine has a GPU; without one fp16, tf32 and the optimizers of bitsandbytes are removed.
        bf16: whether the GPU supports bf16 and tf32.

    Returns:
        The new section, and one note for each change.

    Raises:
        ConfigError: an old key that is not supported, or that contradicts its new name.
    """
    result = {key: value for key, value in section.items() if key not in OLD_KEYS}
    notes: list[str] = []
    for key, value in section.items():
        if key in RENAMED_KEYS:
            new = RENAMED_KEYS[key]
            if key == "evaluation_strategy" and value is False:  # YAML 1.1 reads `no` as false
                value = "no"
            if new in result and result[new] not in (value, TRAINING_DEFAULTS.get(new)):
                raise ConfigError(
                    f"training.{key} and training.{new} contradict each other.", f"Keep training.{new} only."
                )
            result[new] = value
            notes.append(f"training.{key} is now {new}.")
        elif key in CONVERTED_KEYS:
            _convert_key(key, parse_number(value), result, notes)
        elif key in REMOVED_KEYS:
            notes.append(f"training.{key}: {REMOVED_KEYS[key]}.")
        elif key in UNSUPPORTED_KEYS:
            accepted_values, hint = UNSUPPORTED_KEYS[key]
            if value is not None and value not in accepted_values:
                raise ConfigError(f"training.{key} {value} is not supported: transformers removed the key.", hint)
            notes.append(f"training.{key}: no effect with this value.")

    optimizer = str(result.get("optim") or "")
    if optimizer in _OPTIMIZERS:
        result["optim"] = _OPTIMIZERS[optimizer]
        notes.append(f"training.optim: {optimizer} was removed; {_OPTIMIZERS[optimizer]} computes the same.")
    elif not cuda and (optimizer.startswith("paged_") or "8bit" in optimizer or "bnb" in optimizer):
        result["optim"] = "adamw_torch"
        notes.append(f"training.optim: {optimizer} needs a GPU; adamw_torch is used.")

    unavailable: dict[str, str] = {}
    if not cuda:
        unavailable = dict.fromkeys(("fp16", "fp16_full_eval", "tf32"), "there is no GPU")
    elif not bf16:
        unavailable = dict.fromkeys(("bf16", "bf16_full_eval", "tf32"), "the GPU does not support it")
    for key, reason in unavailable.items():
        if result.get(key):
            del result[key]
            notes.append(f"training.{key}: removed, {reason}.")
    return result, notes


def _convert_key(key: str, value: Any, section: dict[str, Any], notes: list[str]) -> None:
    """Set the key of `section` that has the meaning of an old key."""
    if key == "warmup_ratio":
        if not 0 <= (value or 0) < 1:
            raise ConfigError(f"training.warmup_ratio is {value}; it must be at least 0 and below 1.")
        if parse_number(section.get("warmup_steps")) not in (None, 0, TRAINING_DEFAULTS["warmup_steps"]):
            notes.append("training.warmup_ratio: ignored, because warmup_steps is set too, as in transformers 4.")
            return
        section["warmup_steps"] = value or 0
        notes.append(f"training.warmup_ratio {value} is now warmup_steps {value or 0}: a share of all steps.")
    elif key == "group_by_length":
        section["train_sampling_strategy"] = "group_by_length" if value else "random"
        notes.append(f"training.group_by_length is now train_sampling_strategy {section['train_sampling_strategy']}.")
    elif value:
        section["optim"] = "adafactor"
        notes.append("training.adafactor is now optim adafactor.")


def complete_training_section(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the `training:` section of an old script, its defaults included, and one note for each change.

    Args:
        values: keys of `TrainingArguments` from a command line, a JSON or a YAML file.

    Raises:
        ConfigError: a key that is not supported, or a switch that is neither true nor false.
    """
    parsed = {}
    for key, value in values.items():
        if key in TRAINING_SWITCHES | OLD_SWITCHES and value is not None:
            parsed[key] = parse_bool(value, f"training.{key}", "training")
        else:
            parsed[key] = value if key == "run_name" else parse_number(value)
    section, notes = update_training_keys(parsed)
    for key in ("eval_strategy", "save_strategy", "logging_strategy"):
        if section.get(key) is False:  # YAML 1.1 reads `no` as false
            section[key] = "no"
    return {**SCRIPT_DEFAULTS, **section}, notes
