"""What a plan watches: optimiser, forward, loss and backward as the trainer runs them, and an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from transformers import Trainer, TrainingArguments

from glmtune.training.loss import target_losses
from glmtune.training.plan.memory_tracker import Watch, followed
from glmtune.training.plan.model_spec import stack_of

Batch = dict[str, Any]
_STATE_BYTES = {"8bit": 2.0, "4bit": 1.0, "sgd": 0.0, "adafactor": 0.1, "lion": 4.0, "rmsprop": 4.0, "adagrad": 4.0}
"""Of optimisers that cannot run on tensors without memory, bytes per trained number by a part of their names."""


def run_steps(
    watch: Watch,
    model: Any,
    arguments: TrainingArguments,
    batch: Batch | None,
    eval_batch: Batch | None,
    adapter: bool,
    again: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """An optimiser step on gradients of zero, a micro-batch with the optimiser's state in place, and an evaluation.

    Args:
        watch: is entered here and counts.
        model: prepared by a method, on real or fake tensors.
        arguments: of the run.
        batch: from `Collate`; None: no training.
        eval_batch: the same for the evaluation; None: there is none.
        adapter: what is trained is beside the base's weights.
        again: around what the backward pass computes again, where the modes of the caller are off; reentrant
            checkpointing knows no such thing.
    """
    stack, head = stack_of(model), model.get_output_embeddings()
    trained = sum(any(p.requires_grad for p in layer.parameters(recurse=True)) for layer in stack)
    if arguments.activation_checkpointing:
        given: Any = arguments.activation_checkpointing_kwargs
        options: dict[str, Any] = {"use_reentrant": False} | dict(given or {})
        if not options["use_reentrant"]:
            options["context_fn"] = lambda: (nullcontext(), again())
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    _count_weights(watch, model, adapter)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: watch.count(p.grad, "gradients"))
    with watch, _mixed(model, arguments), followed(watch, stack, head, trained):
        watch.enter("before the first layer")
        # The optimiser's state is there in evaluations too.
        kept = None if batch is None else _train(watch, model.train(), head, batch, arguments)
        if eval_batch is not None:
            watch.enter("before the first layer")
            with torch.no_grad():
                target_losses(model.eval(), head, eval_batch)
        del kept


def _train(watch: Watch, model: Any, head: nn.Module, batch: Batch, arguments: TrainingArguments) -> Any:
    """Returns what holds the optimiser's state."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(arguments, parameters)
    state = None if optimizer else _state_of(watch, arguments, parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
        watch.count(parameter.grad, "gradients")
    watch.enter("optimiser step")
    if arguments.max_grad_norm:
        nn.utils.clip_grad_norm_(parameters, arguments.max_grad_norm)
    if optimizer:
        optimizer.step()
        for values in optimizer.state.values():
            for value in values.values():
                if isinstance(value, torch.Tensor):
                    watch.count(value, "optimizer")
    if arguments.gradient_accumulation_steps == 1:  # else those of earlier micro-batches are there
        for parameter in parameters:
            parameter.grad = None
    watch.enter("before the first layer")
    losses_N = target_losses(model, head, batch)
    loss = losses_N.sum() / len(losses_N)
    del losses_N
    loss.backward()
    for parameter in parameters:
        parameter.grad = None
    return optimizer or state


def _optimizer(arguments: TrainingArguments, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
    """The run's optimiser where it is one of torch's; others reach for numbers or for a GPU."""
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError, RuntimeError):
        return None
    return kind(parameters, **options) if kind.__module__.startswith("torch.optim") else None


def _state_of(watch: Watch, arguments: TrainingArguments, parameters: list[nn.Parameter]) -> torch.Tensor:
    """A tensor as large as the state of an optimiser that is not run."""
    name = str(getattr(arguments.optim, "value", arguments.optim))
    each = next((size for part, size in _STATE_BYTES.items() if part in name), 8.0)
    numbers = sum(p.numel() for p in parameters)
    state = torch.empty(int(each * numbers), dtype=torch.uint8, device=parameters[0].device)
    watch.count(state, "optimizer")
    return state


def _count_weights(watch: Watch, model: nn.Module, adapter: bool) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        watch.count(tensor, "adapter" if adapter and tensor.requires_grad else "weights")


@contextmanager
def _mixed(model: Any, arguments: TrainingArguments) -> Iterator[None]:
    """Autocast as accelerate puts it around a model's forward: what comes out is turned into fp32."""
    if not (arguments.bf16 or arguments.fp16):
        yield
        return
    plain = model.forward
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=dtype)(plain))
    try:
        yield
    finally:
        del model.forward
