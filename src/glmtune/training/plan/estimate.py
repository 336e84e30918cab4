"""Estimate the memory that a run needs at its peak, on one device."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.data.batches import Block, BlockCollator
from glmtune.methods import make_method
from glmtune.quantization.packed_linear import pick_device_chunk
from glmtune.training.deepspeed import find_zero_stage
from glmtune.training.plan.device import CPU_HEAP_FACTOR_16_BITS, CPU_HEAP_SHARE_OTHERS, PlanDevice
from glmtune.training.plan.model_spec import ModelSpec, build_meta_model
from glmtune.training.plan.trace import StepTrace, StepTracer
from glmtune.training.sharding import uses_fsdp

ERROR_MARGIN = 0.10
"""Relative error of an estimate: what needs more than this beyond the memory cannot fit."""

_ONE_LAYER_PHASES = ("backward, first trained layer", "backward, first frozen layer")
"""Phases in which only one layer's activations and gradients are left of a step's."""

_SHARDED_PARTS: dict[str, tuple[str, ...]] = {
    "ddp": (),
    "zero1": ("optimizer",),
    "zero2": ("optimizer", "gradients"),
    "zero3": ("optimizer", "gradients", "adapter", "weights"),
    "fsdp": ("optimizer", "gradients", "adapter", "weights"),
}
"""Parts that processes divide among them, by kind of parallelism."""


@dataclass(frozen=True)
class PlanRequest:
    """A run to estimate."""

    spec: ModelSpec
    run: RunConfig
    arguments: TrainingArguments
    precision: torch.dtype
    """Of the frozen weights."""
    collate: BlockCollator | None
    batch: list[Block] | None
    """The largest micro-batch; None: the weights alone."""
    eval_batch: list[Block] | None
    device: PlanDevice
    num_processes: int
    checkpointed_layers: int | None = None
    """Number of layers, from the first, that are checkpointed where checkpointing is on. None: all."""

    @property
    def half(self) -> torch.dtype | None:
        """The 16-bit precision that the run computes in; the trace for a GPU elsewhere computes in bf16."""
        if self.arguments.fp16 or (self.run.model.precision == "fp16" and not self.device.is_local):
            return torch.float16
        return torch.bfloat16 if self.arguments.bf16 else None

    def with_arguments(self, **values: Any) -> PlanRequest:
        """The same with other training arguments."""
        arguments = copy.copy(self.arguments)
        for name, value in values.items():
            setattr(arguments, name, value)
        return replace(self, arguments=arguments)

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return bool(self.arguments.activation_checkpointing)


@dataclass
class MemoryEstimate:
    """Bytes of one process."""

    parts: dict[str, int]
    """At the peak: weights, adapter, gradients, optimizer, activations, logits, own (the process or the CUDA context)
    and kept (by the allocator)."""
    phase: str
    """Of the step, at the peak."""
    memory: int
    """Bytes that there are."""
    flops: float
    """Floating-point operations of the micro-batch."""
    kernels: frozenset[str] = frozenset()
    """Attention kernels that the GPU takes."""

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return sum(self.parts.values())

    @property
    def verdict(self) -> str:
        """`fits`, `tight` (within the estimate's error) or `too large`."""
        if self.total <= self.memory:
            return "fits"
        return "tight" if self.total <= self.memory * (1 + ERROR_MARGIN) else "too large"


def estimate_memory(request: PlanRequest) -> MemoryEstimate:
    """Trace a run's steps and add what a trace does not see.

    Raises:
        ConfigError: the method does not support this model.
    """
    trace = _trace_on_device(request)
    if request.checkpointing and request.checkpointed_layers is not None:
        without = _trace_on_device(request.with_arguments(activation_checkpointing=False))
        trace = interpolate_traces(without, trace, request.checkpointed_layers / request.spec.layers)
    peak = max(trace.phases, key=lambda name: trace.phases[name].total())
    return MemoryEstimate(dict(trace.phases[peak]), peak, request.device.memory, trace.flops, trace.kernels)


def interpolate_traces(without: StepTrace, full: StepTrace, share: float) -> StepTrace:
    """A step with a share of the layers checkpointed.

    What a layer keeps is counted for the others; working sets, of which there is one layer's at a time, are those of a
    checkpointed layer.

    Args:
        without: no layer checkpointed.
        full: all layers checkpointed.
        share: of the layers that are, 0 to 1.
    """
    phases = {}
    for name, parts in full.phases.items():
        more = without.phases[name]
        phases[name] = Counter(
            {part: size + int(max(more[part] - size, 0) * (1 - share)) for part, size in parts.items()}
        )
    return StepTrace(phases, full.flops + (without.flops - full.flops) * (1 - share), full.kernels)


def find_parallelism(run: RunConfig) -> str:
    """How processes share the work: `ddp`, `fsdp` or `zero1` to `zero3`."""
    if uses_fsdp(run):
        return "fsdp"
    return f"zero{find_zero_stage(run)}" if find_zero_stage(run) else "ddp"


def _trace_on_device(request: PlanRequest) -> StepTrace:
    """Trace a run's steps, with one process's share of each part and what its device adds."""
    device, run, collate = request.device, request.run, request.collate
    batch, eval_batch = (
        collate(blocks) if collate and blocks else None for blocks in (request.batch, request.eval_batch)
    )
    unpack_chunk = pick_device_chunk(device.memory) if device.is_gpu else None
    model = request.spec, run, request.arguments, request.precision
    card = device.find_card(request.half)
    tracer = StepTracer(*model, batch, eval_batch, device.is_gpu, card, request.half, unpack_chunk)
    trace = tracer.trace_model()

    # On a CPU the allocator keeps a multiple of the activations of one layer, most of it where short-lived tensors lie
    # between those that stay.
    heap_share = 1.0 if request.checkpointing or run.method == "lora" else CPU_HEAP_SHARE_OTHERS
    heap_factor = CPU_HEAP_FACTOR_16_BITS if request.arguments.bf16 or request.arguments.fp16 else 1.0
    one_layer = next((trace.phases[name] for name in _ONE_LAYER_PHASES if name in trace.phases), Counter())
    cpu_kept = one_layer["activations"] * (heap_share * heap_factor)

    parallelism = find_parallelism(run)
    trained_bytes = max(parts["gradients"] for parts in trace.phases.values())
    gathered_bytes = 0
    if request.num_processes > 1 and parallelism in ("zero3", "fsdp"):
        gathered_bytes = _count_gathered_bytes(request)
    phases = {}
    for name, parts in trace.phases.items():
        if request.num_processes > 1:
            parts = _take_share(parts, parallelism, request.num_processes, trained_bytes, gathered_bytes)
        gpu_kept = parts["gradients"] + parts["activations"] + parts["logits"]
        reserved = int((gpu_kept if device.is_gpu else cpu_kept) * device.allocator_factor)
        phases[name] = Counter({**parts, "own": device.context_bytes, "kept": reserved})
        if run.stage == "grpo" and run.grpo.beta and (run.method != "ptuning" or run.adapter):
            phases[name]["reference"] = trained_bytes

    if not device.is_gpu and _is_converted(request):
        # Weights are read through the page cache: the files' pages count as the process's own until they are released.
        weights = next(iter(phases.values()))["weights"]
        phases["loading"] = Counter({"weights": weights, "own": device.context_bytes, "files": request.spec.file_bytes})
    return StepTrace(phases, trace.flops, trace.kernels)


def _take_share(
    parts: Counter[str], parallelism: str, num_processes: int, trained_bytes: int, gathered_bytes: int
) -> Counter[str]:
    """The parts of one of several processes.

    Args:
        parts: of a process that trains alone.
        parallelism: from `find_parallelism`.
        num_processes: that train together, at least 2.
        trained_bytes: of the trained weights.
        gathered_bytes: of the weights that are complete while they are in use.
    """
    sharded = _SHARDED_PARTS[parallelism]
    share = Counter({part: -(-size // num_processes) if part in sharded else size for part, size in parts.items()})
    if parallelism in ("zero3", "fsdp"):
        share["weights"] += gathered_bytes
    else:
        share["gradients"] += trained_bytes  # a second copy: the buckets that are sent
    return share


def _is_converted(request: PlanRequest) -> bool:
    """Whether weights in memory differ from those on disk. If not, weights on a CPU are the memory-mapped files."""
    method = make_method(request.run, request.spec.family, request.precision)
    dtype = method.load_dtype(request.precision) or request.spec.dtype
    return bool(request.run.model.quantization) or dtype is not request.spec.dtype


def _count_gathered_bytes(request: PlanRequest) -> int:
    """Bytes of complete weights at a time: two layers (one computes, the next is fetched), embedding and head."""
    model = request.spec, request.run, request.precision, True
    one, two = (sum(p.nbytes for p in build_meta_model(*model, layers, 1).parameters()) for layers in (1, 2))
    return (one - (two - one)) + 2 * (two - one)
