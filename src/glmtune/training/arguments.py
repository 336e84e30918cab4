"""transformers' `TrainingArguments` from a run's `training:` section."""

from __future__ import annotations

import dataclasses
import multiprocessing
from typing import Any, get_args, get_type_hints

import torch
from transformers import IntervalStrategy, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import ParallelMode

from glmtune.config import TRAINING_DEFAULTS, RunConfig
from glmtune.config_parsing import suggest_key
from glmtune.errors import ConfigError, summarize_error
from glmtune.models.devices import BITSANDBYTES, find_device, has_bf16
from glmtune.run_dir import RunDir
from glmtune.training.best_metric import FAULTS, check_best_metric, get_metric_name
from glmtune.training.distributed import count_processes
from glmtune.training.older_transformers import HAS_NEW_NAME, OlderTrainingArguments
from glmtune.training.optimizers import check_optimizer
from glmtune.training.training_keys import TRAINING_KEY_CHOICES, TRAINING_KEY_USES
from glmtune.utils.console import print_message, print_warning
from glmtune.utils.documents import shorten_value
from glmtune.utils.installation import format_install

_Base: Any = TrainingArguments if HAS_NEW_NAME else OlderTrainingArguments


class GlmTrainingArguments(_Base):
    """`TrainingArguments` that round a warm-up share down: rounded up, a run of one step would have a rate of 0."""

    def get_warmup_steps(self, num_training_steps: int) -> int:
        return int(self.warmup_steps if self.warmup_steps >= 1 else num_training_steps * self.warmup_steps)


_POSITIVE_KEYS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
_WORKERS = "dataloader_num_workers"
_WORKER_KEYS = (
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
)


def pick_training_device(config: RunConfig) -> torch.device:
    """The device that a run trains on, as far as a process sees: one GPU stands for all.

    Apple's GPU is for LoRA on plain rows; what else there is was not tried on one and trains on the CPU, unless
    `training.use_cpu` is false.
    """
    use_cpu = config.training.get("use_cpu")
    device = torch.device("cpu") if use_cpu else find_device()
    if device.type != "mps" or use_cpu is False:
        return device
    is_tried = config.method == "lora" and config.stage == "sft" and config.model.quantization not in BITSANDBYTES
    return device if is_tried and count_processes() == 1 else torch.device("cpu")


def announce_device(config: RunConfig, device: torch.device) -> None:
    """Print where a run trains that finds Apple's GPU, and why.

    Args:
        config: of the run.
        device: that it trains on.
    """
    if device.type == "mps":
        print_message("Training on Apple's GPU. If it fails there or the loss is strange: --set training.use_cpu=true")
    elif not config.training.get("use_cpu") and find_device().type == "mps":
        print_warning("Training on the CPU: on Apple's GPU, method lora trains in stage sft, without bitsandbytes.")


def pick_precision(precision: str, device: torch.device | None = None) -> torch.dtype:
    """Pick the precision of the frozen weights: `model.precision`, for `auto` the best that the device computes in.

    Args:
        precision: of the config.
        device: to train on; a CUDA GPU or the CPU when None.
    """
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device is not None and device.type == "mps":  # scaling of losses, which fp16 needs, was not tried there
        return torch.bfloat16 if has_bf16(device) else torch.float32
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def check_training_keys(training: dict[str, Any]) -> None:
    """Check the keys of the `training:` section, and the types of numbers.

    Raises:
        ConfigError: a key that `TrainingArguments` does not have, one that is refused, or a value that is not a number,
            or too small.
    """
    hints = get_type_hints(GlmTrainingArguments)
    known_keys = [field.name for field in dataclasses.fields(GlmTrainingArguments) if field.init]
    for key, value in training.items():
        if key not in known_keys:
            raise ConfigError(f"unknown key training.{key}.", suggest_key(key, known_keys))
        use = TRAINING_KEY_USES[key]
        if use.status == "refused" and not use.accepts(value):
            raise ConfigError(f"training.{key} is not supported: {use.reason}.", f"Remove training.{key}.")
        _check_type(key, value, set(get_args(hints[key]) or (hints[key],)))
        choices = TRAINING_KEY_CHOICES.get(key)
        if key == "dataloader_multiprocessing_context":  # Windows has spawn alone
            choices = tuple(multiprocessing.get_all_start_methods())
        if choices and value not in (None, "", [], *choices, [*choices]):
            raise ConfigError(f"training.{key} cannot be {shorten_value(value)}.", f"One of: {', '.join(choices)}.")
        if key in _WORKER_KEYS and value is not None and value is not False and not training.get(_WORKERS):
            raise ConfigError(f"training.{key} has no effect without training.{_WORKERS}.", "Set it to 1 or more.")
        if key in _POSITIVE_KEYS and value < 1:
            raise ConfigError(f"training.{key} is {value}; it must be at least 1.")


def _check_type(key: str, value: Any, kinds: set[Any]) -> None:
    """Check the type of a value: transformers takes some texts for true, and fails at others in the training.

    Args:
        key: of the value.
        value: any.
        kinds: the types that `TrainingArguments` declares.
    """
    if key in ("activation_checkpointing", "gradient_checkpointing"):
        return  # `auto` too; see `read_checkpointing`
    if value is None and type(None) not in kinds and kinds <= {int, float, bool, str}:
        raise ConfigError(f"training.{key} has no value.", "Give it one, or remove the key.")
    is_json = isinstance(value, dict) or str(value).lstrip().startswith("{")
    if key.endswith("_kwargs") and value is not None and not is_json:
        raise ConfigError(f"training.{key} must hold keys and values, not {shorten_value(value)}.")
    if value is None or str in kinds:
        return
    if kinds & {int, float} and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ConfigError(f"training.{key} must be a number, not {value!r}.")
    if bool in kinds and not kinds & {int, float} and not isinstance(value, bool):
        raise ConfigError(f"training.{key} must be true or false, not {shorten_value(value)}.")


def list_ineffective_keys(training: dict[str, Any]) -> list[str]:
    """List the keys of the `training:` section that have no effect with their values, each with the reason."""
    uses = ((key, TRAINING_KEY_USES[key], value) for key, value in training.items() if key in TRAINING_KEY_USES)
    return [
        f"training.{key} has no effect: {use.reason}."
        for key, use, value in uses
        if use.status == "no effect" and not use.accepts(value)
    ]


def read_checkpointing(config: RunConfig) -> bool | str:
    """Read whether activations are recomputed in the backward pass: true, false, or `auto` (the memory plan decides).

    transformers has two names for it, of which the newer one takes precedence.
    """
    for key in ("activation_checkpointing", "gradient_checkpointing"):
        value = config.training.get(key)
        if value is None:
            continue
        word = str(value).lower()  # a form gives text
        if word not in ("auto", "true", "false"):
            raise ConfigError(f"training.{key} cannot be {value!r}.", "One of: true, false, auto.")
        return "auto" if word == "auto" else word == "true"
    return False


def list_reporters(config: RunConfig) -> list[str]:
    """List the services that metrics are reported to, besides the run folder."""
    value = config.training.get("report_to") or []
    names = [value] if isinstance(value, str) else list(value)
    if names == ["all"]:
        return get_available_reporting_integrations()
    return [] if names == ["none"] else names


def check_reporters(config: RunConfig) -> None:
    """Check that the services of `training.report_to` are known and their packages installed.

    Raises:
        ConfigError: one is not.
    """
    available = get_available_reporting_integrations()
    for name in list_reporters(config):
        if name not in INTEGRATION_TO_CALLBACK:
            raise ConfigError(
                f"training.report_to has no value {shorten_value(name)}.",
                suggest_key(str(name), list(INTEGRATION_TO_CALLBACK)),
            )
        if name not in available:
            raise ConfigError(
                f"training.report_to {name} needs its package, which is not installed.",
                f"{format_install(name.replace('_', '-'))}, or set training.report_to to none.",
            )


def _align_save_with_eval(values: dict[str, Any], config: RunConfig) -> None:
    """Save when evaluating, since the best checkpoint is one that was evaluated, unless both are set."""
    if config.early_stopping:
        values.setdefault("load_best_model_at_end", True)
        values.setdefault("restore_callback_states_from_checkpoint", True)  # evaluations without a better one
    if not values.get("load_best_model_at_end"):
        return
    if values["eval_strategy"] == "no":
        key = "early_stopping" if config.early_stopping else "training.load_best_model_at_end"
        raise ConfigError(f"{key} needs evaluations; training.eval_strategy is no.", "Set it to epoch or steps.")
    if not _is_changed(values, "save"):
        values |= {"save_strategy": values["eval_strategy"], "save_steps": values.get("eval_steps") or 0.1}
    elif not _is_changed(values, "eval"):
        values |= {"eval_strategy": values["save_strategy"], "eval_steps": values["save_steps"]}


def _is_changed(values: dict[str, Any], prefix: str) -> bool:
    keys = (f"{prefix}_strategy", f"{prefix}_steps")
    return any(values.get(key) != TRAINING_DEFAULTS.get(key) for key in keys)


def make_arguments(config: RunConfig, run: RunDir, precision: torch.dtype) -> TrainingArguments:
    """Make the arguments of a run, as far as they do not depend on data and plan: see `finish_arguments`.

    Raises:
        ConfigError: an unknown key, or a value that transformers refuses (with its own message).
    """
    check_training_keys(config.training)
    check_best_metric(config)
    for line in list_ineffective_keys(config.training):
        print_warning(line)
    check_reporters(config)
    # Of the other keys, transformers would act on some: look for packages, hold more memory, write on other machines.
    used = [key for key in config.training if TRAINING_KEY_USES[key].status == "used"]
    values: dict[str, Any] = {key: config.training[key] for key in used}
    on_gpu = torch.cuda.is_available() and not values.get("use_cpu")
    values.setdefault("use_cpu", pick_training_device(config).type == "cpu")
    if not {"bf16", "fp16"} & set(config.training):
        values["bf16"] = precision is torch.bfloat16
        values["fp16"] = precision is torch.float16 and on_gpu
    values.setdefault("dataloader_pin_memory", on_gpu)
    values.setdefault("label_names", ["labels"])
    values.setdefault("ddp_find_unused_parameters", False)  # every trained weight is used in every step
    if count_processes() == 1:
        values.pop("ddp_backend", None)  # torch would look for a process group
    _align_save_with_eval(values, config)
    if config.stage == "grpo":
        values["metric_for_best_model"] = get_metric_name(config)
    if get_metric_name(config) in FAULTS:  # transformers takes more of anything but a loss for better
        values.setdefault("greater_is_better", False)
    values.pop("gradient_checkpointing", None)
    values |= {
        "activation_checkpointing": read_checkpointing(config) is True,  # auto is decided by the plan
        "output_dir": str(run.checkpoints),
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,  # the trainer stops at such a loss with an error
        "disable_tqdm": True,  # ProgressDisplay shows more
        "report_to": [],  # the run builds their callbacks itself
    }
    try:
        arguments = GlmTrainingArguments(**values)
    except (ValueError, TypeError, ImportError, KeyError, AttributeError, OSError, RuntimeError) as error:
        reason = summarize_error(error)
        raise ConfigError(f"training: {reason}") from None
    check_optimizer(arguments, config)
    if arguments.parallel_mode is ParallelMode.NOT_DISTRIBUTED:
        # With several GPUs visible to one process the Trainer would split batches among them by nn.DataParallel,
        # which is obsolete and which our batches of rows without padding cannot be split for.
        arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def finish_arguments(
    arguments: TrainingArguments, config: RunConfig, *, has_eval_rows: bool, checkpointing: bool
) -> None:
    """Complete the arguments with what data and memory plan decide. Nothing changes them afterwards.

    Args:
        arguments: of `make_arguments`.
        config: of the run.
        has_eval_rows: whether there are rows to evaluate on.
        checkpointing: whether any layer's activations are recomputed.

    Raises:
        ConfigError: the best checkpoint needs evaluation rows, and there are none.
    """
    arguments.activation_checkpointing = arguments.gradient_checkpointing = checkpointing
    if has_eval_rows:
        return
    if config.early_stopping or arguments.load_best_model_at_end:
        key = "early_stopping" if config.early_stopping else "training.load_best_model_at_end"
        raise ConfigError(
            f"{key} needs evaluation rows, and there are none.", "Give --eval-data, or set data.eval_fraction=0.05."
        )
    arguments.eval_strategy = IntervalStrategy.NO
