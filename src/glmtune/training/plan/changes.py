"""The cheapest change that makes a run fit: each one is estimated, none is guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from glmtune.config import RunConfig
from glmtune.errors import GlmtuneError
from glmtune.training.plan.estimate import Request, estimate
from glmtune.training.plan.workload import shortened


@dataclass(frozen=True)
class Change:
    """Settings to change, and what the run needs then."""

    settings: tuple[str, ...]
    """As `--set` takes them."""
    costs: str
    total: int
    fits: bool


@dataclass(frozen=True)
class _Step:
    settings: tuple[str, ...]
    costs: str
    apply: Callable[[Request], Request]


def cheapest_change(request: Request) -> Change | None:
    """The first single change that makes a run fit, then the first combination; else the most that they give together;
    None where there is nothing to change.

    From what costs nothing to what changes the result: a smaller evaluation batch, gradient checkpointing, half the
    batch with twice the accumulation, a base in 4 bits, an adapter in place of the whole model, shorter rows.
    """
    steps = list(_steps(request))
    best: Change | None = None
    for step in steps:
        best = _tried(request, [step]) or best
        if best and best.fits:
            return best
    together: list[_Step] = []
    for step in steps:
        # A later step of the same settings replaces the earlier.
        together = [one for one in together if _keys(one) != _keys(step)] + [step]
        change = _tried(request, together)
        if change and (best is None or change.total < best.total):
            best = change
        if best and best.fits:
            return best
    return best


def _tried(request: Request, steps: list[_Step]) -> Change | None:
    changed = request
    for step in steps:
        changed = step.apply(changed)
    try:
        made = estimate(changed)
    except GlmtuneError:  # a change that this method or base does not take
        return None
    settings = tuple(setting for step in steps for setting in step.settings)
    return Change(settings, "; ".join(step.costs for step in steps), made.total, made.verdict == "fits")


def _keys(step: _Step) -> tuple[str, ...]:
    return tuple(setting.split("=")[0] for setting in step.settings)


def _steps(request: Request) -> Iterator[_Step]:
    arguments, run = request.arguments, request.run
    if request.eval_batch and len(request.eval_batch) > 1:
        yield _Step(
            ("training.per_device_eval_batch_size=1",),
            "slower evaluations",
            lambda r: replace(r, eval_batch=r.eval_batch and r.eval_batch[:1]),
        )
    if request.batch and not (request.checkpointing and request.recomputed is None):
        # The newer of two names counts wherever it is set.
        newer = run.training.get("activation_checkpointing") is not None
        yield _Step(
            (f"training.{'activation' if newer else 'gradient'}_checkpointing=true",),
            "about a third slower",
            lambda r: replace(r.with_arguments(activation_checkpointing=True), recomputed=None),
        )
    size = arguments.per_device_train_batch_size
    while request.batch and size > 1:
        size //= 2
        yield _halved(size, -(-arguments.gradient_accumulation_steps * arguments.per_device_train_batch_size // size))
    yield from _smaller_base(request, run)
    longest = run.data.max_length or run.data.max_source_length + run.data.max_target_length
    for limit in (longest // 2, longest // 4):
        if request.batch and limit >= 64:
            yield _shorter(limit)


def _halved(size: int, accumulation: int) -> _Step:
    def apply(request: Request) -> Request:
        return replace(
            request.with_arguments(gradient_accumulation_steps=accumulation),
            batch=request.batch and request.batch[:size],
        )

    settings = (
        f"training.per_device_train_batch_size={size}",
        f"training.gradient_accumulation_steps={accumulation}",
    )
    return _Step(settings, "the same steps", apply)


def _smaller_base(request: Request, run: RunConfig) -> Iterator[_Step]:
    held = request.subject.held or run.model.quantization
    if held is None and run.method in ("lora", "ptuning"):
        yield _Step(
            ("model.quantization=nf4",),
            "a base in 4 bits",
            lambda r: replace(r, run=replace(r.run, model=replace(r.run.model, quantization="nf4"))),
        )
    if run.method in ("full", "freeze"):
        yield _Step(("method=lora",), "an adapter", lambda r: replace(r, run=replace(r.run, method="lora")))
        yield _Step(
            ("method=qlora",),
            "an adapter on a base in 4 bits",
            lambda r: replace(r, run=replace(r.run, method="lora", model=replace(r.run.model, quantization="nf4"))),
        )


def _shorter(limit: int) -> _Step:
    def apply(request: Request) -> Request:
        data = replace(request.run.data, max_length=limit)
        batch, evaluation = (
            items and shortened(items, limit, data.packing) for items in (request.batch, request.eval_batch)
        )
        return replace(request, run=replace(request.run, data=data), batch=batch, eval_batch=evaluation)

    return _Step((f"data.max_length={limit}",), "longer rows are cut", apply)
