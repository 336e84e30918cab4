"""Find the cheapest change of settings that makes a run fit; each change is estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from glmtune.errors import GlmtuneError
from glmtune.training.plan.estimate import PlanRequest, estimate_memory
from glmtune.training.plan.workload import truncate_blocks
from glmtune.training.sharding import shards_weights
from glmtune.utils.optional_packages import is_installed

_Scheme = Literal["nf4", "packed8", "packed4"]
_MIN_LENGTH = 64  # tokens; a change does not shorten rows below it


@dataclass(frozen=True)
class SettingsChange:
    """Settings to change, and what the run needs with them."""

    settings: tuple[str, ...]
    """As `--set` takes them."""
    cost: str
    """What the change costs the user, in words."""
    total: int
    """Bytes."""
    fits: bool


@dataclass(frozen=True)
class _Step:
    settings: tuple[str, ...]
    cost: str
    apply: Callable[[PlanRequest], PlanRequest]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(setting.split("=")[0] for setting in self.settings)


def find_cheapest_change(request: PlanRequest) -> SettingsChange | None:
    """The first single change that makes a run fit, else the first combination, else the change that saves most.

    In order of cost: a smaller evaluation batch, gradient checkpointing, half the batch with twice the accumulation,
    the embedding on the host, a base in 4 bits, a head in 8, an adapter instead of the full model, shorter rows.

    Returns:
        None where there is nothing to change.
    """
    steps = list(_list_steps(request))
    best: SettingsChange | None = None
    for step in steps:
        best = _estimate_change(request, [step]) or best
        if best and best.fits:
            return best
    combination: list[_Step] = []
    for step in steps:
        # A later step with the same keys replaces the earlier.
        combination = [other for other in combination if other.keys != step.keys] + [step]
        change = _estimate_change(request, combination)
        if change and (best is None or change.total < best.total):
            best = change
        if best and best.fits:
            return best
    return best


def _estimate_change(request: PlanRequest, steps: list[_Step]) -> SettingsChange | None:
    for step in steps:
        request = step.apply(request)
    try:
        estimate = estimate_memory(request)
    except GlmtuneError:  # the method or the base does not support the change
        return None
    settings = tuple(dict.fromkeys(setting for step in steps for setting in step.settings))
    cost = "; ".join(step.cost for step in steps)
    return SettingsChange(settings, cost, estimate.total, estimate.verdict == "fits")


def _list_steps(request: PlanRequest) -> Iterator[_Step]:
    """Single changes, from what costs nothing to what changes the result."""
    arguments, run = request.arguments, request.run
    if request.eval_batch and len(request.eval_batch) > 1:
        yield _Step(
            ("training.per_device_eval_batch_size=1",),
            "slower evaluations",
            lambda r: replace(r, eval_batch=r.eval_batch and r.eval_batch[:1]),
        )
    if request.batch and not (request.checkpointing and request.checkpointed_layers is None):
        # Where both names of the key are set, transformers reads the newer.
        is_newer_key = run.training.get("activation_checkpointing") is not None
        yield _Step(
            (f"training.{'activation' if is_newer_key else 'gradient'}_checkpointing=true",),
            "about a third slower",
            lambda r: replace(r.with_arguments(activation_checkpointing=True), checkpointed_layers=None),
        )
    size = arguments.per_device_train_batch_size
    while request.batch and size > 1:
        size //= 2
        rows_per_step = arguments.gradient_accumulation_steps * arguments.per_device_train_batch_size
        yield _halve_batch(size, -(-rows_per_step // size))
    on_host = ("model.embedding_on_host=true",) if _can_be_on_host(request) else ()
    is_shared = request.spec.shares_head and run.model.head_quantization is None  # the head needs the same matrix
    if on_host and not is_shared:
        yield _Step(on_host, "a little slower", _move_embedding)

    quantization = request.spec.quantization or run.model.quantization
    if quantization is None and run.method in ("lora", "ptuning"):
        for scheme, bits in _list_base_schemes(request):
            apply = partial(_quantize_base, scheme=scheme)
            yield _Step((f"model.quantization={scheme}",), f"a base in {bits} bits", apply)
    if run.model.head_quantization is None and run.method in ("lora", "ptuning") and not shards_weights(run):
        head = ("model.head_quantization=packed8",)
        if is_shared and on_host:
            yield _Step(
                (*head, *on_host), "a rounded head while training", lambda r: _move_embedding(_quantize_head(r))
            )
        elif not is_shared:
            yield _Step(head, "a rounded head while training", _quantize_head)
    if run.method in ("full", "freeze"):
        yield _Step(("method=lora",), "an adapter", _use_lora)
        for scheme, bits in _list_base_schemes(request):
            settings = ("method=qlora",) if scheme == "nf4" else ("method=lora", f"model.quantization={scheme}")
            change = partial(_use_lora_on_quantized_base, scheme=scheme)
            yield _Step(settings, f"an adapter on a base in {bits} bits", change)

    max_length = run.data.max_length or run.data.max_source_length + run.data.max_target_length
    for limit in (max_length // 2, max_length // 4):
        if request.batch and limit >= _MIN_LENGTH:
            yield _limit_length(limit)


def _can_be_on_host(request: PlanRequest) -> bool:
    """Whether the embedding is on the GPU and need not be."""
    run = request.run
    return (
        request.device.is_gpu
        and request.num_processes == 1
        and run.method != "full"
        and not run.model.embedding_on_host
    )


def _move_embedding(request: PlanRequest) -> PlanRequest:
    return replace(request, run=replace(request.run, model=replace(request.run.model, embedding_on_host=True)))


def _quantize_head(request: PlanRequest) -> PlanRequest:
    return replace(request, run=replace(request.run, model=replace(request.run.model, head_quantization="packed8")))


def _list_base_schemes(request: PlanRequest) -> tuple[tuple[_Scheme, int], ...]:
    """Schemes for the frozen base with their bits, the most exact first: nf4 where bitsandbytes can be used."""
    if request.device.is_local and not is_installed("bitsandbytes"):
        return ("packed8", 8), ("packed4", 4)
    return (("nf4", 4),)


def _quantize_base(request: PlanRequest, scheme: _Scheme) -> PlanRequest:
    return replace(request, run=replace(request.run, model=replace(request.run.model, quantization=scheme)))


def _use_lora(request: PlanRequest) -> PlanRequest:
    return replace(request, run=replace(request.run, method="lora"))


def _use_lora_on_quantized_base(request: PlanRequest, scheme: _Scheme) -> PlanRequest:
    return _quantize_base(_use_lora(request), scheme)


def _halve_batch(size: int, accumulation: int) -> _Step:
    def apply(request: PlanRequest) -> PlanRequest:
        return replace(
            request.with_arguments(gradient_accumulation_steps=accumulation),
            batch=request.batch and request.batch[:size],
        )

    settings = (
        f"training.per_device_train_batch_size={size}",
        f"training.gradient_accumulation_steps={accumulation}",
    )
    return _Step(settings, "the same optimiser steps", apply)


def _limit_length(limit: int) -> _Step:
    def apply(request: PlanRequest) -> PlanRequest:
        data = replace(request.run.data, max_length=limit)
        batch, eval_batch = (
            blocks and truncate_blocks(blocks, limit, data.packing) for blocks in (request.batch, request.eval_batch)
        )
        return replace(request, run=replace(request.run, data=data), batch=batch, eval_batch=eval_batch)

    return _Step((f"data.max_length={limit}",), "longer rows are truncated", apply)
