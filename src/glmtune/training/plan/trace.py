"""The memory of a step, traced on tensors without memory with few layers and extrapolated to all layers.

In every phase a step's memory is affine in the number of layers, so two traces give every depth exactly.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import Trainer, TrainingArguments

from glmtune.config import RunConfig
from glmtune.methods import make_method
from glmtune.models.attention_kernels import Card, plan_for_card
from glmtune.quantization.packed_linear import PackedLinear
from glmtune.training.loss import step_loss
from glmtune.training.older_transformers import enable_checkpointing
from glmtune.training.plan.memory_tracker import PARTS, MemoryTracker, track_layers
from glmtune.training.plan.model_spec import ModelSpec, build_meta_model, find_layers

Batch = dict[str, Any]

_FEW_LAYERS = 3
"""Layers of the smaller trace: with fewer, the first, the second and the last but one would not be different layers."""

_OPTIMIZER_BYTES = {
    "8bit": 2.0,
    "4bit": 1.0,
    "sgd": 0.0,
    "adafactor": 0.1,
    "lion": 4.0,
    "rmsprop": 4.0,
    "adagrad": 4.0,
}
"""Bytes of state per trained number, by a part of the name, of optimisers that cannot run on fake tensors."""


@dataclass
class StepTrace:
    """What a step needs."""

    phases: dict[str, Counter[str]]
    """Bytes by part at the peak of each phase."""
    flops: float
    """Floating-point operations of a micro-batch in matrix products."""
    kernels: frozenset[str] = frozenset()
    """Attention kernels that the card takes."""

    def extrapolate(self, more: StepTrace, less: StepTrace, times: int) -> StepTrace:
        """Add `times` the difference between two traces."""
        phases = {
            name: Counter(
                {part: parts[part] + times * (more.phases[name][part] - less.phases[name][part]) for part in PARTS}
            )
            for name, parts in self.phases.items()
        }
        return StepTrace(phases, self.flops + times * (more.flops - less.flops), self.kernels)


_CACHE: dict[str, StepTrace] = {}


@dataclass(frozen=True)
class StepTracer:
    """Traces the steps of a run."""

    spec: ModelSpec
    run: RunConfig
    arguments: TrainingArguments
    precision: torch.dtype
    """Of the frozen weights."""
    batch: Batch | None
    """The largest micro-batch, from `BlockCollator`; None: the weights alone."""
    eval_batch: Batch | None
    """The largest batch of an evaluation; None: no evaluation."""
    on_gpu: bool
    """Whether to autocast and to group rows as on a GPU."""
    card: Card | None = None
    """The GPU whose attention kernels are traced; None: those of a CPU."""
    half: torch.dtype | None = None
    """The 16-bit precision of the run, where the trace computes in the other one."""
    unpack_chunk: int | None = None
    """Packed numbers that the GPU unpacks at a time."""

    def trace_model(self) -> StepTrace:
        """Trace with few layers and extrapolate to the model's number of layers.

        Raises:
            ConfigError: the method does not support this model.
        """
        layers = self.spec.layers
        trained = min(self.run.freeze.trainable_layers, layers) if self.run.method == "freeze" else layers
        frozen = layers - trained
        few_frozen, few_trained = (n if n <= _FEW_LAYERS + 1 else _FEW_LAYERS for n in (frozen, trained))
        few = result = self.trace_layers(few_frozen, few_trained)
        if frozen > few_frozen:
            result = result.extrapolate(self.trace_layers(few_frozen + 1, few_trained), few, frozen - few_frozen)
        if trained > few_trained:
            result = result.extrapolate(self.trace_layers(few_frozen, few_trained + 1), few, trained - few_trained)
        return result

    def trace_layers(self, frozen: int, trained: int) -> StepTrace:
        """Trace with this number of frozen and trained layers; the same trace is made once per process."""
        run, arguments = self.run, self.arguments
        shapes = [
            batch and (tuple(batch["input_ids"].shape), len(batch["targets"]), batch["row_lengths"].tolist())
            for batch in (self.batch, self.eval_batch)
        ]
        settings = (run.model, run.method, run.lora, run.ptuning, arguments.to_json_string())
        spec_key = (self.spec.folder, self.spec.config, self.spec.shares_head, self.spec.new_tokens)
        model_key = (*spec_key, settings, self.precision)
        key = repr((*model_key, shapes, self.on_gpu, self.card, self.half, self.unpack_chunk, frozen, trained))
        if key in _CACHE:
            return _CACHE[key]

        mixed = arguments.bf16 or arguments.fp16
        autocast_mode = _CudaFunctions if self.on_gpu else nullcontext
        is_adapter = make_method(run, self.spec.family, self.precision).output_kind == "adapter"
        tracker = MemoryTracker(int(self.spec.config.vocab_size))
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            model = build_meta_model(self.spec, run, self.precision, mixed, frozen + trained, trained)
            # Tensors made here have shapes, dtypes and storages of the right size, but no memory. Batches stay real:
            # the ends of rows are read from them.
            with (
                FakeTensorMode(allow_non_fake_inputs=True),
                autocast_mode(),
                plan_for_card(self.card, self.half) as plan,
            ):
                _move_to_fake_cpu(model)
                if self.on_gpu:
                    for module in model.modules():
                        if isinstance(module, PackedLinear):
                            module.unpack_chunk, module.traces_gpu = self.unpack_chunk, True
                batches = self.batch, self.eval_batch
                run_steps(
                    tracker,
                    model,
                    arguments,
                    *batches,
                    is_adapter,
                    single_rows=not self.on_gpu,
                    recompute=autocast_mode,
                )
        _CACHE[key] = StepTrace(tracker.phases, tracker.flops, frozenset(plan.kernels))
        return _CACHE[key]


def run_steps(
    tracker: MemoryTracker,
    model: Any,
    arguments: TrainingArguments,
    batch: Batch | None,
    eval_batch: Batch | None,
    is_adapter: bool,
    *,
    single_rows: bool | None = None,
    recompute: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Run an optimiser step on gradients of zero, a micro-batch with the optimiser's state in place, and an evaluation.

    Args:
        tracker: is entered here and counts.
        model: prepared by a method, on real or fake tensors.
        arguments: of the run.
        batch: from `BlockCollator`; None: no training.
        eval_batch: the same for the evaluation; None: no evaluation.
        is_adapter: the trained weights are an adapter beside the base's weights.
        single_rows: as of `step_loss`.
        recompute: context around what the backward pass computes again, where the caller's modes are off; not used by
            reentrant checkpointing, which has no such option.
    """
    layers, head = find_layers(model), model.get_output_embeddings()
    trained = sum(any(p.requires_grad for p in layer.parameters(recurse=True)) for layer in layers)
    if arguments.activation_checkpointing:
        settings: Any = arguments.activation_checkpointing_kwargs
        options: dict[str, Any] = {"use_reentrant": False} | dict(settings or {})
        if not options["use_reentrant"]:
            options["context_fn"] = lambda: (nullcontext(), recompute())
        enable_checkpointing(model, options)
    for tensor in (*model.parameters(), *model.buffers()):
        tracker.add_tensor(tensor, "adapter" if is_adapter and tensor.requires_grad else "weights")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: tracker.add_tensor(p.grad, "gradients"))

    with tracker, _autocast_forward(model, arguments), track_layers(tracker, layers, head, trained):
        tracker.enter_phase("before the first layer")
        state = None
        if batch is not None:
            model.train()
            state = _step_optimizer(tracker, model, arguments, on_gpu=single_rows is False)
            tracker.enter_phase("before the first layer")
            losses_N = step_loss(model, batch, single_rows)
            loss = losses_N.sum() / len(losses_N)
            del losses_N
            loss.backward()
            del loss
            for parameter in model.parameters():
                parameter.grad = None
        if eval_batch is not None:
            tracker.enter_phase("before the first layer")
            with torch.no_grad():
                step_loss(model.eval(), eval_batch, single_rows)
        del state  # the optimiser's state is in memory during evaluations too


def _step_optimizer(tracker: MemoryTracker, model: Any, arguments: TrainingArguments, on_gpu: bool) -> Any:
    """Step the run's optimiser on gradients of zero, with its state in place.

    Returns:
        The owner of the optimiser's state.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _make_optimizer(arguments, parameters, on_gpu)
    state = None
    if optimizer is None:  # count a tensor as large as its state
        name = str(getattr(arguments.optim, "value", arguments.optim))
        bytes_each = next((size for part, size in _OPTIMIZER_BYTES.items() if part in name), 8.0)
        size = int(bytes_each * sum(p.numel() for p in parameters))
        state = torch.empty(size, dtype=torch.uint8, device=parameters[0].device)
        tracker.add_tensor(state, "optimizer")
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
        tracker.add_tensor(parameter.grad, "gradients")
    if optimizer is not None:
        tracker.enter_phase()  # the first step makes the state, which would be counted as temporary tensors
        optimizer.step()
        for values in optimizer.state.values():
            for value in values.values():
                if isinstance(value, torch.Tensor):
                    tracker.add_tensor(value, "optimizer")
    tracker.enter_phase("optimiser step")
    if arguments.max_grad_norm:
        nn.utils.clip_grad_norm_(parameters, arguments.max_grad_norm)
    if optimizer is not None:
        optimizer.step()
    if arguments.gradient_accumulation_steps == 1:  # else those of earlier micro-batches are in memory
        for parameter in parameters:
            parameter.grad = None
    return optimizer or state


def _make_optimizer(
    arguments: TrainingArguments, parameters: list[nn.Parameter], on_gpu: bool
) -> torch.optim.Optimizer | None:
    """The run's optimiser if it is one of torch's; others read values of tensors or need a GPU."""
    try:
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError, RuntimeError):
        return None
    if not optimizer_class.__module__.startswith("torch.optim"):
        return None
    if on_gpu and not options.get("fused") and "foreach" in inspect.signature(optimizer_class).parameters:
        options = {"foreach": True, **options}  # torch's choice on a GPU: temporary tensors of all weights at a time
    return optimizer_class(parameters, **options)


@contextlib.contextmanager
def _autocast_forward(model: Any, arguments: TrainingArguments) -> Iterator[None]:
    """Autocast the model's forward as accelerate does: its outputs are converted to fp32."""
    if not (arguments.bf16 or arguments.fp16):
        yield
        return
    forward = model.forward
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=dtype)(forward))
    try:
        yield
    finally:
        del model.forward


def _move_to_fake_cpu(model: nn.Module) -> None:
    """Replace tensors of the meta device by fake ones on the CPU: autocast and attention choose by device."""
    fakes: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in fakes:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                tensors[name] = fakes[id(tensor)]  # type: ignore[assignment]


class _CudaFunctions(TorchFunctionMode):
    """What CUDA does and the CPU does not, of the functions that these models call: autocast computes some in fp32, and
    dropout keeps a mask of bytes."""

    _IN_FP32 = (F.layer_norm, torch.layer_norm, F.softmax, torch.softmax, torch.Tensor.softmax)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.dropout:
            return _drop_as_cuda(*args, **(kwargs or {}))
        if func in self._IN_FP32 and torch.is_autocast_enabled("cpu"):
            args = tuple(a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)
        return func(*args, **(kwargs or {}))


def _drop_as_cuda(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return torch.native_dropout(input, p, training)[0] if training and p else input
