"""A plan from a run's config, and what `train` decides by it."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_left
from dataclasses import dataclass, field, replace

import torch
from rich.console import Console
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.models.tokenizers import load_tokenizer
from glmtune.run_dir import RunDir
from glmtune.training.arguments import checkpointing_asked, pick_precision, training_arguments
from glmtune.training.plan.changes import Change, cheapest_change
from glmtune.training.plan.device import Device, matmul_rate, pick_device
from glmtune.training.plan.estimate import MARGIN, Estimate, Request, estimate
from glmtune.training.plan.model_spec import Subject, look_at
from glmtune.training.plan.process_share import kind_of
from glmtune.training.plan.workload import Work, work_of
from glmtune.training.training_data import Rows, prepare_rows

_LAUNCHER = ("fsdp", "fsdp_config", "deepspeed")
"""What TrainingArguments takes under a launcher only; a plan reads it from the config itself."""


@dataclass
class Plan:
    """What a run needs and does."""

    estimate: Estimate
    device: Device
    processes: int
    sharing: str
    layers: int
    recomputed: int
    """Of the layers, those that are checkpointed, from the first."""
    decided: bool
    """Checkpointing was left to the plan."""
    without_checkpointing: int | None
    """Bytes without it, where the plan turned it on."""
    work: Work | None
    precision: torch.dtype
    largest: dict[str, int] = field(default_factory=dict)
    """Blocks, positions and targets of the largest micro-batch."""
    seconds: float | None = None
    change: Change | None = None

    @property
    def verdict(self) -> str:
        """As `Estimate.verdict`."""
        return self.estimate.verdict

    @property
    def checkpointing(self) -> bool:
        """Whether any layer is checkpointed."""
        return self.recomputed > 0


def make_plan(
    run: RunConfig, gpu_memory: str | None = None, processes: int = 1, console: Console | None = None
) -> Plan:
    """Plan a run without its weights: config.json, the tokenizer and the data are enough, and without data the weights
    alone are planned.

    Raises:
        GlmtuneError: the config, the data, or a size of memory that cannot be used.
    """
    device = pick_device(gpu_memory, bool(run.training.get("use_cpu")))
    subject = look_at(run.model.path, run.model.family, run.model.hub)
    run, precision = _for_device(run, device)
    plain = replace(run, training={key: value for key, value in run.training.items() if key not in _LAUNCHER})
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(plain, RunDir(folder), precision)
    rows = None
    if run.data.train:
        tokenizer = load_tokenizer(subject.folder, family=subject.family.name)
        rows = prepare_rows(run, subject.family, tokenizer, console or Console(quiet=True))
    plan, request = plan_for(subject, run, arguments, precision, rows, device, processes)
    if plan.verdict != "fits":
        plan.change = cheapest_change(request)
    if rows is not None and device.here:
        plan.seconds = _seconds(plan, arguments)
    return plan


def plan_for(
    subject: Subject,
    run: RunConfig,
    arguments: TrainingArguments,
    precision: torch.dtype,
    rows: Rows | None,
    device: Device,
    processes: int,
    recomputed: int | None = None,
) -> tuple[Plan, Request]:
    """A plan without advice, and the request that changes start from.

    Checkpointing that is left to the plan (`auto`) is on only if the run does not fit without it, and then for as few
    layers as need be.

    Args:
        subject: the base.
        run: its settings.
        arguments: made of them.
        precision: of the frozen weights.
        rows: of the run; None: the weights alone.
        device: that each process has.
        processes: that train together.
        recomputed: where `run` asks for checkpointing: of so many layers; None: of all.
    """
    work = work_of(rows, arguments, processes, _weights(subject)) if rows else None
    if not device.gpu and processes > 1:  # processes of one machine have its memory together
        here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))  # a launcher may use several machines
        device = replace(device, memory=device.memory // here)
    asked = checkpointing_asked(run)
    request = Request(
        subject,
        run,
        arguments,
        precision,
        rows.collate if rows else None,
        work.batch if work else None,
        work.eval_batch if work else None,
        device,
        processes,
        recomputed,
    ).with_arguments(activation_checkpointing=asked is True)
    made, without = estimate(request), None
    if asked == "auto" and work and made.verdict != "fits":
        with_it = request.with_arguments(activation_checkpointing=True)
        if estimate(with_it).total < made.total:
            without = made.total
            request = _fewest_layers(with_it)
            made = estimate(request)
    layers = subject.layers
    done = (layers if request.recomputed is None else request.recomputed) if request.checkpointing else 0
    shared = kind_of(run)
    plan = Plan(made, device, processes, shared, layers, done, asked == "auto", without, work, precision)
    if work and rows:
        batch = rows.collate(work.batch)
        plan.largest = {
            "blocks": len(work.batch),
            "positions": batch["input_ids"].numel(),
            "targets": batch["targets"].numel(),
        }
    return plan, request


def _fewest_layers(request: Request) -> Request:
    """The request with as few layers checkpointed as leave an estimate's error free; with all, if none do. Of a model
    whose last layers alone are trained, all: the first have nothing to keep."""
    room, layers = request.device.memory * (1 - MARGIN), request.subject.layers
    if request.run.method == "freeze":
        return request

    def fits(count: int) -> bool:
        return estimate(replace(request, recomputed=count)).total <= room

    fewest = bisect_left(range(layers), True, lo=1, key=fits)
    return request if fewest >= layers else replace(request, recomputed=fewest)


def _weights(subject: Subject) -> tuple[float, float]:
    """Bytes of a position and of a target, roughly: some thirty numbers a layer, and hidden states with gradients."""
    hidden = subject.config.hidden_size
    return 32.0 * hidden * subject.layers, 16.0 * hidden


def _for_device(run: RunConfig, device: Device) -> tuple[RunConfig, torch.dtype]:
    """Settings that only a GPU takes, said so that arguments can be made for one that is not here: bf16 and fp16 take
    the same memory. The trace itself runs on the CPU."""
    if device.here:
        return run, pick_precision(run.model.precision)
    training = {key: value for key, value in run.training.items() if key not in ("tf32", "fp16")}
    training["use_cpu"] = True
    if run.training.get("fp16"):
        training["bf16"] = True
    precision = torch.float32 if run.model.precision == "fp32" else torch.bfloat16
    return replace(run, training=training), precision


def _seconds(plan: Plan, arguments: TrainingArguments) -> float | None:
    """Time of the matrix products at this machine's rate. Rough: the rest of a step takes time too."""
    if plan.work is None:
        return None
    mixed = arguments.bf16 or arguments.fp16
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if mixed else torch.float32
    rate = matmul_rate(dtype, "cuda" if plan.device.gpu else "cpu")
    each = plan.estimate.products / max(plan.largest["positions"], 1)
    return each * plan.work.tokens / rate / plan.processes
