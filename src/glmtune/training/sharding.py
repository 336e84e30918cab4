"""Sharded weights (FSDP2, DeepSpeed): what can be sharded, gathering weights, loading into shards."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed.fsdp
from accelerate import accelerator as accelerator_module
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.errors import ConfigError
from glmtune.methods.method import StateDict
from glmtune.training.deepspeed import find_zero_stage
from glmtune.training.distributed import count_processes, is_main_process
from glmtune.utils.file_access import require_readable
from glmtune.utils.optional_packages import import_extra

_ALTERNATIVE = "Leave it out: every GPU then has the complete quantised base, which is small."


def uses_fsdp(config: RunConfig) -> bool:
    """Whether the run, or `accelerate launch`, asks for FSDP."""
    return bool(config.training.get("fsdp")) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def shards_weights(config: RunConfig) -> bool:
    """Whether weights are sharded, so that no process has all of them: FSDP and ZeRO-3."""
    return uses_fsdp(config) or find_zero_stage(config) >= 3


def check_sharding(config: RunConfig, quantised: bool) -> None:
    """Check what a run asks of FSDP or DeepSpeed.

    Raises:
        ConfigError: what the run asks of FSDP or DeepSpeed cannot work.

    Args:
        config: of the run.
        quantised: the base is published in an integer layout.
    """
    fsdp = config.training.get("fsdp_config") or {}
    if isinstance(fsdp, str):  # a file, which transformers opens
        require_readable(fsdp)
    kind = "training.fsdp" if uses_fsdp(config) else "training.deepspeed"
    if uses_fsdp(config) and count_processes() == 1:
        raise ConfigError("training.fsdp needs several processes.", "Start them: glmtune train --nproc 2 ...")
    if shards_weights(config) and (config.model.quantization or quantised):
        raise ConfigError(f"{kind} cannot shard the packed weights of a quantised base.", _ALTERNATIVE)
    if count_processes() > 1 and config.model.embedding_on_host:
        raise ConfigError(
            "model.embedding_on_host is for one process: data parallelism needs all weights on one kind of device.",
            "Leave it out, or train on one GPU.",
        )
    if shards_weights(config) and config.model.head_quantization:
        raise ConfigError(f"{kind} cannot shard a quantised head.", "Leave model.head_quantization out.")
    if shards_weights(config) and config.generate.rows:
        raise ConfigError(
            f"generate.rows: no process has the complete model under {kind}, so none can generate replies.",
            "Leave it out, and score the result with `glmtune eval`.",
        )
    if isinstance(fsdp, dict) and str(fsdp.get("version") or fsdp.get("fsdp_version") or 2) != "2":
        raise ConfigError("training.fsdp_config.version must be 2.", "FSDP 1 is deprecated; leave the key out.")
    if isinstance(fsdp, dict) and fsdp.get("activation_checkpointing"):
        raise ConfigError(
            "training.fsdp_config.activation_checkpointing renames the weights that are saved.",
            "Use training.activation_checkpointing=true.",
        )


def check_new_tokens(config: RunConfig) -> None:
    """Require that the rows of new tokens can be trained.

    Raises:
        ConfigError: an adapter's rows of tokens cannot be sharded.
    """
    if config.method == "lora" and shards_weights(config):
        kind = "training.fsdp" if uses_fsdp(config) else "training.deepspeed"
        raise ConfigError(
            f"data.new_tokens: {kind} cannot shard the rows of new tokens in an adapter.",
            "Leave it out (every GPU then has the complete base), or use method full.",
        )


@contextmanager
def cast_while_sharding(frozen_dtype: torch.dtype) -> Iterator[None]:
    """Let FSDP bring weights to their precision module by module, just before it shards them.

    A model is loaded in the precision on disk, from pages that all processes of a machine share. accelerate would copy
    all trained weights to fp32 in every process, and shard those.

    Args:
        frozen_dtype: of what is not trained; trained weights become fp32.
    """
    shard, prepare_model = torch.distributed.fsdp.fully_shard, accelerator_module.fsdp2_prepare_model

    def cast_and_shard(modules: Any, **options: Any) -> Any:
        for module in modules if isinstance(modules, (list, tuple)) else [modules]:
            for parameter in module.parameters():
                if not isinstance(parameter, DTensor):
                    cast_weight(parameter, frozen_dtype)
        return shard(modules, **options)

    def prepare_without_copies(accelerator: Any, model: nn.Module) -> nn.Module:
        precision = accelerator.state._mixed_precision
        accelerator.state._mixed_precision = "no"  # only whether all trained weights are copied depends on it here
        try:
            prepared: nn.Module = prepare_model(accelerator, model)
            return prepared
        finally:
            accelerator.state._mixed_precision = precision

    torch.distributed.fsdp.fully_shard = cast_and_shard  # type: ignore[assignment]
    accelerator_module.fsdp2_prepare_model = prepare_without_copies
    try:
        yield
    finally:
        torch.distributed.fsdp.fully_shard = shard
        accelerator_module.fsdp2_prepare_model = prepare_model


def cast_weight(parameter: nn.Parameter, frozen_dtype: torch.dtype) -> None:
    """Bring a weight to the precision of a run: fp32 if it is trained."""
    if parameter.is_floating_point():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else frozen_dtype)


@contextmanager
def allow_fsdp_on_cpu(arguments: TrainingArguments) -> Iterator[None]:
    """Let accelerate shard on CPUs: torch can, but accelerate's list of devices lacks them, and it then silently trains
    without sharding."""
    state: Any = PartialState()
    if arguments.fsdp_plugin_args is not None and state.distributed_type is DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU
    yield


def keep_losses_fp32(model: nn.Module, head: nn.Module) -> None:
    """Let a sharded model return its losses in fp32: accelerate has FSDP round the outputs of modules to the
    precision that they compute in, and the head and the modules around it return losses."""
    for module in model.modules():
        if isinstance(module, FSDPModule) and any(inner is head for inner in module.modules()):
            state: Any = module._get_fsdp_state()
            state._mp_policy = dataclasses.replace(state._mp_policy, output_dtype=torch.float32)


def sync_trained_only(model: nn.Module) -> None:
    """Exclude frozen weights and buffers from data parallelism: every process has read the same base, and gloo and
    NCCL do not support every integer type."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    frozen.update(name for name, _ in model.named_buffers())
    model._ddp_params_and_buffers_to_ignore = frozen  # type: ignore[assignment]


def gather_weights(model: nn.Module, wanted: Callable[[str], bool]) -> StateDict:
    """Gather complete weights on the CPU of the main process; nothing in the others. All processes must call it.

    Args:
        model: sharded or not.
        wanted: whether the weight of a name in the state dict is needed.
    """
    main, state = is_main_process(), {}
    _reshard(model)
    own = dict(model.named_parameters(remove_duplicate=False))
    for name, value in model.state_dict().items():
        if wanted(name):
            whole = _gather_weight(own.get(name, value))
            if main:
                state[name] = whole.detach().to("cpu", copy=True)  # a gathered weight may have padding after it
    return state


@contextmanager
def load_into_shards(model: nn.Module) -> Iterator[None]:
    """Let weights be copied into their shards as if the model were not sharded."""
    if not any(isinstance(module, FSDPModule) for module in model.modules()):
        yield
        return
    _reshard(model)
    with implicit_replication():
        yield


def _reshard(model: nn.Module) -> None:
    """Reshard: after an evaluation some weights are still complete, in memory that FSDP may free at any time."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _gather_weight(value: torch.Tensor) -> torch.Tensor:
    if isinstance(value, DTensor):
        return value.full_tensor()
    if hasattr(value, "ds_id"):  # ZeRO-3
        return _from_deepspeed(value)
    if value.requires_grad and hasattr(value, "_hp_mapping"):  # trained by DeepSpeed in 16 bits, with a copy in fp32
        full: torch.Tensor = import_extra("deepspeed.utils").safe_get_full_fp32_param(value)
        return full
    return value


def _from_deepspeed(value: torch.Tensor) -> torch.Tensor:
    deepspeed = import_extra("deepspeed")
    master: torch.Tensor | None = deepspeed.utils.safe_get_full_fp32_param(value) if value.requires_grad else None
    if master is not None:
        return master
    with deepspeed.zero.GatheredParameters([value]):
        return value.detach().clone()
