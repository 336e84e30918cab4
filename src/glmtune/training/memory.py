"""Running out of memory, explained in terms of the run's settings; and the peak memory of this process."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glmtune.config import RunConfig
from glmtune.errors import TrainingError, summarize_error
from glmtune.training.arguments import read_checkpointing
from glmtune.utils.operating_system import read_peak_rss

# Messages of torch's CPU allocator, of the CUDA driver, and of cuBLAS and cuDNN, which raise plain RuntimeErrors.
_MESSAGES = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of a GPU or of the CPU was exhausted."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(message in str(error) for message in _MESSAGES)


def explain_out_of_memory(error: BaseException, moment: str, config: RunConfig) -> TrainingError:
    """Make the error to raise, with the settings to change and their new values.

    Args:
        error: what torch raised.
        moment: "at step 3", for example.
        config: of the run.
    """
    reason = summarize_error(error, 200)
    changes = "; ".join(_suggest_changes(config))
    return TrainingError(f"Out of memory {moment} ({reason}).", f"Try, in this order: {changes}.")


def _suggest_changes(config: RunConfig) -> list[str]:
    training, data = config.training, config.data
    changes = []
    batch = int(training.get("per_device_train_batch_size") or 1)
    if batch > 1:
        half = batch // 2
        steps = -(-int(training.get("gradient_accumulation_steps") or 1) * batch // half)
        changes.append(
            f"training.per_device_train_batch_size={half} with training.gradient_accumulation_steps={steps} "
            "(the same optimiser steps, half the activations)"
        )
    if read_checkpointing(config) is not True:
        changes.append("training.activation_checkpointing=true (all layers: slower by about a third)")
    longest = data.max_length or data.max_source_length + data.max_target_length
    changes.append(f"data.max_length={max(longest // 2, 8)} (now {longest}; longer rows are truncated)")
    if config.method == "full":
        changes.append("method=lora")
    elif not config.model.quantization and config.method in ("lora", "ptuning"):
        changes.append("model.quantization=nf4 (a quarter of the weights' memory)")
    return changes


@dataclass(frozen=True)
class PeakMemory:
    """Bytes at the peak of a process, as they are named in summary.json."""

    peak_memory_bytes: int | None
    """Of live tensors on the GPU, or of the process on a CPU; None if the system does not say."""
    peak_reserved_bytes: int | None = None
    """What torch's allocator had taken from the GPU for them; None on a CPU."""
    outside_allocator_bytes: int | None = None
    """What is in use on the GPU beside it now: the CUDA context, libraries, other programs."""

    @property
    def on_device(self) -> int | None:
        """What `nvidia-smi` shows at the peak; None on a CPU."""
        if self.peak_reserved_bytes is None:
            return None
        return self.peak_reserved_bytes + (self.outside_allocator_bytes or 0)


def read_peak_memory(on_gpu: bool) -> PeakMemory:
    """Read the peak memory of this process on its GPU, or in the machine's memory."""
    if not on_gpu:
        return PeakMemory(read_peak_rss())
    free, total = torch.cuda.mem_get_info()
    return PeakMemory(
        torch.cuda.max_memory_allocated(),
        torch.cuda.max_memory_reserved(),
        max(total - free - torch.cuda.memory_reserved(), 0),
    )
