"""What a run needs at its worst moment, on one device."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.data.batches import Collate, Item
from glmtune.methods import method_of
from glmtune.training.plan.device import KEPT_ELSEWHERE, KEPT_IN_16_BITS, Device
from glmtune.training.plan.model_spec import Subject, build
from glmtune.training.plan.process_share import kind_of, share_of
from glmtune.training.plan.trace import Traced, traced

MARGIN = 0.10
"""How far off an estimate may be: what needs more than this beyond the memory cannot fit."""

_WORKING = ("backward, first trained layer", "backward, first frozen layer")
"""Moments at which one layer's activations and gradients are all that is left of a step's."""


@dataclass(frozen=True)
class Request:
    """What to estimate."""

    subject: Subject
    run: RunConfig
    arguments: TrainingArguments
    precision: torch.dtype
    collate: Collate | None
    batch: list[Item] | None
    """The largest micro-batch; None: the weights alone."""
    eval_batch: list[Item] | None
    device: Device
    processes: int
    recomputed: int | None = None
    """Of the layers, where checkpointing is on: so many from the first are checkpointed. None: all."""

    def with_arguments(self, **values: Any) -> Request:
        """The same with other training arguments."""
        return replace(self, arguments=_changed(self.arguments, values))

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return bool(self.arguments.activation_checkpointing)


@dataclass
class Estimate:
    """Bytes of one process."""

    parts: dict[str, int]
    """At the worst moment: weights, adapter, gradients, optimizer, activations, logits, own (the process or the CUDA
    context) and kept (by the allocator)."""
    moment: str
    memory: int
    products: float
    """Floating-point operations of the micro-batch."""

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())

    @property
    def verdict(self) -> str:
        """`fits`, `tight` (within the estimate's error) or `too large`."""
        if self.total <= self.memory:
            return "fits"
        return "tight" if self.total <= self.memory * (1 + MARGIN) else "too large"


def estimate(request: Request) -> Estimate:
    """Trace a request and add up.

    Raises:
        ConfigError: what the method refuses of this model.
    """
    moments, products = _needs(request)
    if request.checkpointing and request.recomputed is not None:
        plain = _needs(request.with_arguments(activation_checkpointing=False))
        moments, products = _between(plain, (moments, products), request.recomputed / request.subject.layers)
    worst = max(moments, key=lambda name: moments[name].total())
    return Estimate(dict(moments[worst]), worst, request.device.memory, products)


def _between(
    plain: tuple[dict[str, Counter[str]], float], all_: tuple[dict[str, Counter[str]], float], share: float
) -> tuple[dict[str, Counter[str]], float]:
    """What is needed with a share of the layers checkpointed. What a layer keeps is counted for the others; working
    sets, which one layer has at a time, are those of a checkpointed one."""
    moments = {}
    for name, parts in all_[0].items():
        less = plain[0][name]
        moments[name] = Counter(
            {part: size + int(max(less[part] - size, 0) * (1 - share)) for part, size in parts.items()}
        )
    return moments, all_[1] + (plain[1] - all_[1]) * (1 - share)


def _needs(request: Request) -> tuple[dict[str, Counter[str]], float]:
    """Bytes by part at each moment, and the micro-batch's operations."""
    collate = request.collate
    batch, eval_batch = (collate(items) if collate and items else None for items in (request.batch, request.eval_batch))
    steps = traced(
        request.subject, request.run, request.arguments, request.precision, batch, eval_batch, request.device.gpu
    )
    moments = {name: _on_device(parts, request, steps) for name, parts in steps.moments.items()}
    if not request.device.gpu and _is_converted(request):
        moments["loading"] = _while_loading(moments, request)
    return moments, steps.products


def _on_device(parts: Counter[str], request: Request, steps: Traced) -> Counter[str]:
    if request.processes > 1:
        trained = max(moment["gradients"] for moment in steps.moments.values())
        gathered = _gathered(request) if kind_of(request.run) in ("zero3", "fsdp") else 0
        parts = share_of(parts, kind_of(request.run), request.processes, trained, gathered)
    device = request.device
    kept: float
    if device.gpu:
        kept = sum(parts[name] for name in ("gradients", "activations", "logits"))
    else:
        kept = _working_set(steps) * _holes(request)
    return Counter({**parts, "own": device.own, "kept": int(kept * device.kept_back)})


def _working_set(steps: Traced) -> int:
    """Bytes of activations while a single layer is at work."""
    return next((steps.moments[name]["activations"] for name in _WORKING if name in steps.moments), 0)


def _holes(request: Request) -> float:
    """How much more than elsewhere a CPU's heap keeps: most where short-lived tensors lie between those that stay."""
    share = 1.0 if request.checkpointing or request.run.method == "lora" else KEPT_ELSEWHERE
    return share * (KEPT_IN_16_BITS if request.arguments.bf16 or request.arguments.fp16 else 1.0)


def _is_converted(request: Request) -> bool:
    """Whether the base is held otherwise than on disk. If not, its weights on a CPU are the mapped files themselves."""
    method = method_of(request.run, request.subject.family, request.precision)
    dtype = method.load_dtype(request.precision) or request.subject.own
    return bool(request.run.model.quantization) or dtype is not request.subject.own


def _while_loading(moments: dict[str, Counter[str]], request: Request) -> Counter[str]:
    """Weights are read through the page cache: the files' pages count as the process's own until they are let go."""
    first = next(iter(moments.values()))
    return Counter({"weights": first["weights"], "own": request.device.own, "files": request.subject.on_disk})


def _gathered(request: Request) -> int:
    """Weights that are whole while they are at work: two layers (one computes, the next is fetched), embedding and
    head."""
    made = request.subject, request.run, request.precision, True
    one, two = (sum(p.nbytes for p in build(*made, layers, 1).parameters()) for layers in (1, 2))
    return (one - (two - one)) + 2 * (two - one)


def _changed(arguments: TrainingArguments, values: dict[str, Any]) -> TrainingArguments:
    other = copy.copy(arguments)
    for name, value in values.items():
        setattr(other, name, value)
    return other
