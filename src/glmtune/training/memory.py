"""Out of memory, said in terms of the run's own settings."""

from __future__ import annotations

import torch

from glmtune.config import RunConfig
from glmtune.errors import TrainingError, first_line
from glmtune.training.arguments import checkpointing_asked

# Of torch's CPU allocator, of the CUDA driver, and of cuBLAS and cuDNN: none has an error class of its own.
_SIGNS = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a lack of memory, on a GPU or (torch's own allocator) on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(sign in str(error) for sign in _SIGNS)


def out_of_memory(error: BaseException, where: str, config: RunConfig) -> TrainingError:
    """The error to raise: what to lower, and to what.

    Args:
        error: what torch raised.
        where: `at step 3`, for example.
        config: of the run.
    """
    reason = first_line(error, 200)
    ways = "; ".join(_ways(config))
    return TrainingError(f"Out of memory {where} ({reason}).", f"Try, in this order: {ways}.")


def _ways(config: RunConfig) -> list[str]:
    training, data = config.training, config.data
    ways = []
    batch = int(training.get("per_device_train_batch_size") or 1)
    if batch > 1:
        half = batch // 2
        steps = -(-int(training.get("gradient_accumulation_steps") or 1) * batch // half)
        ways.append(
            f"training.per_device_train_batch_size={half} with training.gradient_accumulation_steps={steps} "
            "(the same optimiser steps, half the activations)"
        )
    if checkpointing_asked(config) is not True:
        ways.append("training.activation_checkpointing=true (all layers: slower by about a third)")
    longest = data.max_length or data.max_source_length + data.max_target_length
    ways.append(f"data.max_length={max(longest // 2, 8)} (now {longest}; longer rows are cut)")
    if config.method == "full":
        ways.append("method=lora")
    elif not config.model.quantization and config.method in ("lora", "ptuning"):
        ways.append("model.quantization=nf4 (a quarter of the weights' memory)")
    return ways
