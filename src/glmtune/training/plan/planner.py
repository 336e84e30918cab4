"""Plan a run from its config: memory, steps, time, and which layers to checkpoint."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_left
from dataclasses import dataclass, field, replace

import torch
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.methods.run_tokenizer import load_run_tokenizer
from glmtune.models.attention_kernels import Card
from glmtune.run_dir import RunDir
from glmtune.training.arguments import make_arguments, pick_precision, pick_training_device, read_checkpointing
from glmtune.training.plan.changes import SettingsChange, find_cheapest_change
from glmtune.training.plan.device import PlanDevice, measure_matmul_rate, pick_device
from glmtune.training.plan.estimate import (
    ERROR_MARGIN,
    MemoryEstimate,
    PlanRequest,
    estimate_memory,
    find_parallelism,
)
from glmtune.training.plan.model_spec import ModelSpec, inspect_model
from glmtune.training.plan.workload import LongestAnswers, Workload, make_workload
from glmtune.training.training_data import TrainingData, prepare_data

_LAUNCHER_KEYS = ("fsdp", "fsdp_config", "deepspeed")
"""Keys that TrainingArguments takes under a launcher only; a plan reads them from the config."""


@dataclass
class Plan:
    """What a run needs and does."""

    estimate: MemoryEstimate
    device: PlanDevice
    num_processes: int
    parallelism: str
    """From `find_parallelism`."""
    layers: int
    checkpointed_layers: int
    """Number of layers, from the first, that are checkpointed."""
    is_auto: bool
    """Checkpointing was left to the plan."""
    bytes_without_checkpointing: int | None
    """Where the plan turned it on."""
    workload: Workload | None
    precision: torch.dtype
    largest_batch: dict[str, int] = field(default_factory=dict)
    """Blocks, positions and targets of the largest micro-batch."""
    seconds: float | None = None
    change: SettingsChange | None = None
    """The cheapest that makes the run fit, where it does not."""
    attention: tuple[str, ...] = ()
    """Attention kernels that the GPU takes, or the one that the run asks for."""
    card: Card | None = None
    """The GPU that they are of, or the one that is assumed."""

    @property
    def verdict(self) -> str:
        """As `MemoryEstimate.verdict`."""
        return self.estimate.verdict

    @property
    def checkpointing(self) -> bool:
        """Whether any layer is checkpointed."""
        return self.checkpointed_layers > 0


def make_plan(run: RunConfig, gpu_memory: str | None = None, num_processes: int = 1) -> Plan:
    """Plan a run without its weights.

    config.json, the tokenizer and the data are enough; without data the weights alone are planned.

    Raises:
        GlmtuneError: the config, the data, or a size of memory that cannot be used.
    """
    device = pick_device(gpu_memory, bool(run.training.get("use_cpu")))
    spec = inspect_model(run.model.path, run.model.family, run.model.hub)
    run, precision = _adapt_to_device(run, device)
    without_launcher = replace(
        run, training={key: value for key, value in run.training.items() if key not in _LAUNCHER_KEYS}
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = make_arguments(without_launcher, RunDir(folder), precision)
    training_data = None
    if run.data.train:
        tokenizer, new_tokens = load_run_tokenizer(run, spec.folder, spec.family.name)
        spec = spec.with_tokens(new_tokens)
        training_data = prepare_data(run, spec.family, tokenizer)
    plan, request = plan_run(spec, run, arguments, precision, training_data, device, num_processes)
    if plan.verdict != "fits":
        plan.change = find_cheapest_change(request)

    if plan.workload is not None and device.is_local and run.stage != "grpo":  # answers may be shorter
        # The matrix products at this machine's rate: a lower bound, the rest of a step takes time too.
        dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32
        rate = measure_matmul_rate(dtype, "cuda" if device.is_gpu else "cpu")
        flops_per_token = plan.estimate.flops / max(plan.largest_batch["positions"], 1)
        plan.seconds = flops_per_token * plan.workload.tokens / rate / num_processes
    return plan


def plan_run(
    spec: ModelSpec,
    run: RunConfig,
    arguments: TrainingArguments,
    precision: torch.dtype,
    training_data: TrainingData | None,
    device: PlanDevice,
    num_processes: int,
    checkpointed_layers: int | None = None,
) -> tuple[Plan, PlanRequest]:
    """Plan a run that was prepared, without looking for changes.

    With `training.gradient_checkpointing: auto` checkpointing is on only if the run does not fit without it, and then
    for as few layers as necessary.

    Args:
        spec: the base.
        run: its settings.
        arguments: made from them.
        precision: of the frozen weights.
        training_data: of the run; None: the weights alone.
        device: of each process.
        num_processes: that train together.
        checkpointed_layers: number of layers to checkpoint where `run` turns checkpointing on; None: all.

    Returns:
        The plan, and the request that changes start from.
    """
    workload = None
    if training_data is not None:
        # Approximate bytes of a position (about thirty numbers per layer) and of a target (hidden states, gradients).
        hidden = spec.config.hidden_size
        weights = 32.0 * hidden * spec.layers, 16.0 * hidden
        if run.stage == "grpo":
            answers = LongestAnswers(training_data.train, run)
            training_data = replace(training_data, train=answers, eval=None)  # evaluations have no batch of their own
        workload = make_workload(training_data, arguments, num_processes, weights)
        if run.stage == "grpo":
            workload.tokens = round(workload.tokens * answers.passes)
    if not device.is_gpu and num_processes > 1:  # processes of one machine share its memory
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))  # a launcher may use several machines
        device = replace(device, memory=device.memory // local_processes)
    checkpointing = read_checkpointing(run)
    request = PlanRequest(
        spec=spec,
        run=run,
        arguments=arguments,
        precision=precision,
        collate=training_data.collate if training_data else None,
        batch=workload.batch if workload else None,
        eval_batch=workload.eval_batch if workload else None,
        device=device,
        num_processes=num_processes,
        checkpointed_layers=checkpointed_layers,
    ).with_arguments(activation_checkpointing=checkpointing is True)
    estimate, bytes_without = estimate_memory(request), None
    if checkpointing == "auto" and workload and estimate.verdict != "fits":
        all_layers = request.with_arguments(activation_checkpointing=True)
        if estimate_memory(all_layers).total < estimate.total:
            bytes_without = estimate.total
            request = _checkpoint_fewest_layers(all_layers)
            estimate = estimate_memory(request)

    layers = spec.layers
    if not request.checkpointing:
        checkpointed = 0
    else:
        checkpointed = layers if request.checkpointed_layers is None else request.checkpointed_layers
    plan = Plan(
        estimate,
        device,
        num_processes,
        find_parallelism(run),
        layers,
        checkpointed,
        checkpointing == "auto",
        bytes_without,
        workload,
        precision,
    )
    asked = run.model.attention
    plan.card = device.find_card(request.half)
    plan.attention = tuple(sorted(estimate.kernels)) if asked in ("auto", "sdpa") else (asked,)
    if workload and training_data:
        batch = training_data.collate(workload.batch)
        plan.largest_batch = {
            "blocks": len(workload.batch),
            "positions": batch["input_ids"].numel(),
            "targets": batch["targets"].numel(),
        }
    return plan, request


def _checkpoint_fewest_layers(request: PlanRequest) -> PlanRequest:
    """The request with as few layers checkpointed as leave the estimate's error free; with all, if none do.

    Of a model whose last layers alone are trained, all: the first keep nothing for the backward pass.
    """
    limit, layers = request.device.memory * (1 - ERROR_MARGIN), request.spec.layers
    if request.run.method == "freeze":
        return request

    def fits(count: int) -> bool:
        return estimate_memory(replace(request, checkpointed_layers=count)).total <= limit

    fewest = bisect_left(range(layers), True, lo=1, key=fits)
    return request if fewest >= layers else replace(request, checkpointed_layers=fewest)


def _adapt_to_device(run: RunConfig, device: PlanDevice) -> tuple[RunConfig, torch.dtype]:
    """Settings and precision with which arguments can be made here for a GPU that is elsewhere.

    The trace runs on the CPU; fp16 is traced as bf16, which takes the same memory.
    """
    if device.is_local:
        return run, pick_precision(run.model.precision, pick_training_device(run))
    training = {key: value for key, value in run.training.items() if key not in ("tf32", "fp16")}
    training["use_cpu"] = True
    precision = torch.float32 if run.model.precision == "fp32" else torch.bfloat16
    if run.training.get("fp16"):
        training["bf16"] = True
        run = replace(run, model=replace(run.model, precision="fp16"))  # what the card is assumed by
    return replace(run, training=training), precision
