"""DeepSpeed's settings, checked before anything is loaded: DeepSpeed itself ignores a misspelt key at the top level."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from glmtune.config import RunConfig
from glmtune.config_parsing import suggest_key
from glmtune.errors import ConfigError
from glmtune.utils.console import print_message, print_warning
from glmtune.utils.documents import DocumentError, parse_json, read_document
from glmtune.utils.operating_system import is_linux
from glmtune.utils.optional_packages import import_extra, is_installed, require_extra

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}

_TOP = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("optimizer", "scheduler", "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
    *("fp16", "bf16", "torch_autocast", "data_types", "communication_data_type", "prescale_gradients"),
    *("gradient_predivide_factor", "gradient_allreduce_op", "sparse_gradients", "disable_allgather", "compile"),
    *("activation_checkpointing", "aio", "checkpoint", "comms_logger", "comms_config", "csv_monitor", "wandb"),
    *("tensorboard", "comet", "monitor_config", "flops_profiler", "steps_per_print", "wall_clock_breakdown"),
    *("memory_breakdown", "dump_state", "disable_python_gc", "dataloader_drop_last", "log_level", "seed"),
    *("elasticity", "autotuning", "nebula", "data_efficiency", "compression_training", "hybrid_engine"),
    *("tensor_parallel", "sequence_parallel_size", "zenflow", "use_data_before_expert_parallelism"),
)
"""Top-level keys that DeepSpeed 0.19 reads; it has no such list itself."""


def resolve_deepspeed(config: RunConfig) -> RunConfig:
    """Read DeepSpeed's file into `training.deepspeed`, so that the run folder has the settings that were used.

    Raises:
        ConfigError: deepspeed is not installed, the file is not there or no JSON, or it has a key that DeepSpeed does
            not know or glmtune cannot honour.
    """
    value = config.training.get("deepspeed")
    if not value:
        return config
    if not is_linux() and not is_installed("deepspeed"):
        raise ConfigError(
            "training.deepspeed needs DeepSpeed, which pip installs on Linux only.",
            "Several processes without it: --nproc N alone, or training.fsdp.",
        )
    require_extra("deepspeed", "training.deepspeed")
    if "LOCAL_RANK" not in os.environ:
        raise ConfigError("training.deepspeed needs a launcher.", "Start it with glmtune train --nproc N; N may be 1.")
    where = value if isinstance(value, str) else "training.deepspeed"
    settings = _read(Path(value).expanduser()) if isinstance(value, str) else value
    check_deepspeed(settings, where)
    return dataclasses.replace(config, training=config.training | {"deepspeed": settings})


def check_deepspeed(settings: Any, where: str) -> None:
    """Check the keys of DeepSpeed's settings.

    Raises:
        ConfigError: an unknown key at the top or under zero_optimization, or a scheduler of its own.

    Args:
        settings: the content of the file.
        where: its name, for the message.
    """
    if not isinstance(settings, dict):
        raise ConfigError(f"{where}: must hold keys and values.")
    _check_keys(settings, list(_TOP), where, "")
    zero = settings.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f"{where}: zero_optimization must hold keys and values.", 'For example {"stage": 2}.')
    _check_keys(zero, _zero_keys(), where, "zero_optimization.")
    if "scheduler" in settings:
        raise ConfigError(
            f"{where}: its scheduler contradicts training.lr_scheduler_type.", "Remove scheduler from the file."
        )


def require_same_settings(config: RunConfig, arguments: TrainingArguments) -> None:
    """Require that DeepSpeed's settings agree with `training`.

    Raises:
        ConfigError: batch size, rate or optimiser of DeepSpeed's file are not those of `training`.
    """
    settings = config.training.get("deepspeed")
    if not settings:
        return
    filled: Any = arguments.hf_deepspeed_config
    for line in filled.mismatches:
        theirs, wanted = line.removeprefix("- ds ").split(" vs hf ")
        raise ConfigError(f"training.deepspeed: {theirs}, but training has {wanted}.", 'Write "auto" in the file.')
    kind = str(settings.get("optimizer", {}).get("type", ""))
    ours = getattr(arguments.optim, "value", arguments.optim)
    if kind and (kind.lower() not in ("adam", "adamw") or "adamw" not in ours):
        raise ConfigError(
            f"training.deepspeed: optimizer.type {kind}, but training.optim is {ours}.",
            "Remove optimizer from the file; training.optim decides.",
        )


def announce_compilation(config: RunConfig, on_gpu: bool) -> None:
    """Say that DeepSpeed compiles its optimizer, which takes minutes in which nothing is printed, and name a lock that
    a killed compilation may have left: torch would wait for it without end.

    Args:
        config: of the run, with DeepSpeed's settings.
        on_gpu: whether the run is on GPUs.
    """
    for name in list_compiled_parts(config.training.get("deepspeed") or {}, on_gpu):
        folder = _find_build_folder(name)
        if folder is None or (folder / f"{name}.so").is_file():
            continue
        lock = folder / "lock"
        if lock.exists():
            print_warning(
                f"{lock}: another process compiles {name} for DeepSpeed, and this one waits for it. If there is none, "
                "it was killed: stop this one and remove the file."
            )
        else:
            print_message(f"DeepSpeed compiles {name}, once; this takes some minutes.")


def list_compiled_parts(settings: Mapping[str, Any], on_gpu: bool) -> list[str]:
    """The parts of DeepSpeed that it compiles for these settings."""
    zero = settings.get("zero_optimization") or {}
    devices = [str((zero.get(key) or {}).get("device", "none")) for key in ("offload_optimizer", "offload_param")]
    parts = ["async_io"] if "nvme" in devices else []
    if "optimizer" in settings:
        parts += ["cpu_adam"] if devices[0] != "none" or not on_gpu else ["fused_adam"]
    return parts


def _find_build_folder(name: str) -> Path | None:
    from torch.utils import cpp_extension

    try:
        return Path(cpp_extension._get_build_directory(name, verbose=False))
    except OSError:
        return None


@contextmanager
def without_zero_init(arguments: TrainingArguments) -> Iterator[None]:
    """Load a base without ZeRO-3's partitioned initialisation, whose shapes the conversion from the published layout
    cannot handle. DeepSpeed partitions the complete model later."""
    settings = getattr(arguments, "hf_deepspeed_config", None)
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if settings is not None:
            set_hf_deepspeed_config(settings)


def partition_weights(model: Any, arguments: TrainingArguments) -> None:
    """Partition a loaded model for ZeRO-3, one weight at a time.

    DeepSpeed would convert the whole model and move it to the GPU of every process before it partitions it.

    Args:
        model: on the CPU, prepared by a method; in the precision on disk.
        arguments: of the run.
    """
    deepspeed = import_extra("deepspeed")
    if not deepspeed.comm.is_initialized():  # it has a record of its own of torch's process group
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False)
    settings: Any = arguments.hf_deepspeed_config
    dtype = next((dtype for name, dtype in _HALF.items() if settings.is_true(f"{name}.enabled")), torch.float32)
    deepspeed.zero.Init(module=_CastParameters(model, dtype), config_dict_or_path=settings.config, dtype=dtype)


class _CastParameters(torch.nn.Module):
    """Yields the parameters of a model, each converted when it is its turn.

    Args:
        model: whose parameters they are.
        dtype: of floating-point parameters.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype):
        super().__init__()
        self._model_and_dtype = model, dtype

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        model, dtype = self._model_and_dtype
        for parameter in model.parameters(recurse):
            if parameter.is_floating_point() and not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.to(dtype)
            yield parameter


def find_zero_stage(config: RunConfig) -> int:
    """The stage of ZeRO: 0 without DeepSpeed; from 3 on the weights are sharded."""
    settings = config.training.get("deepspeed") or {}
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def _read(path: Path) -> Any:
    try:
        return parse_json(read_document(path), unique_keys=True)
    except DocumentError as error:
        raise ConfigError(f"training.deepspeed: {path} cannot be read ({error.problem}).") from None


def _check_keys(found: dict[str, Any], known: list[str], where: str, prefix: str) -> None:
    for key in found:
        if key not in known:
            raise ConfigError(f"{where}: DeepSpeed has no key {prefix}{key}.", suggest_key(key, known))


def _zero_keys() -> list[str]:
    fields = import_extra("deepspeed.runtime.zero.config").DeepSpeedZeroConfig.model_fields
    return [*fields, *(field.alias for field in fields.values() if field.alias)]
