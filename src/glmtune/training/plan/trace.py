"""A step traced on tensors without memory, with few layers, and carried over to all of them.

A step's memory is affine in the number of layers at each of the named moments, so two traces give every depth exactly.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.methods import method_of
from glmtune.quantization import packed_linear as linear
from glmtune.training import loss
from glmtune.training.plan.memory_tracker import PARTS, Watch
from glmtune.training.plan.model_spec import Subject, build
from glmtune.training.plan.step import Batch, run_steps

_FEW = 3
"""Layers of the smaller trace: the least in which a first, a second and a last but one can be told apart."""


@dataclass
class Traced:
    """What a step needs."""

    moments: dict[str, Counter[str]]
    """Bytes by part at each moment."""
    products: float
    """Floating-point operations of a micro-batch in matrix products."""

    @property
    def worst(self) -> str:
        """The moment that needs most."""
        return max(self.moments, key=lambda name: self.moments[name].total())


def traced(
    subject: Subject,
    run: RunConfig,
    arguments: TrainingArguments,
    precision: torch.dtype,
    batch: Batch | None,
    eval_batch: Batch | None,
    on_gpu: bool,
) -> Traced:
    """The memory of a run's steps.

    Args:
        subject: the base.
        run: its settings.
        arguments: made of them.
        precision: of the frozen weights.
        batch: the largest micro-batch, from `Collate`; None: weights alone.
        eval_batch: the largest of an evaluation; None: there is none.
        on_gpu: autocast as CUDA does it.

    Raises:
        ConfigError: what the method refuses of this model.
    """
    whole = subject.layers
    trained = min(run.freeze.trainable_layers, whole) if run.method == "freeze" else whole
    frozen = whole - trained

    trace = Step(subject, run, arguments, precision, (batch, eval_batch), on_gpu).trace
    few_frozen, few_trained = (count if count <= _FEW + 1 else _FEW for count in (frozen, trained))
    result = trace(few_frozen, few_trained)
    for extra, start, count in ((1, few_frozen, frozen), (0, few_trained, trained)):
        if count > start:
            more = trace(few_frozen + extra, few_trained + 1 - extra)
            result = _carried(result, _difference(more, trace(few_frozen, few_trained)), count - start)
    return result


def _difference(more: Traced, less: Traced) -> Traced:
    return Traced(
        {name: _minus(more.moments[name], parts) for name, parts in less.moments.items()},
        more.products - less.products,
    )


def _carried(base: Traced, slope: Traced, times: int) -> Traced:
    moments = {
        name: Counter({part: parts[part] + times * slope.moments[name][part] for part in PARTS})
        for name, parts in base.moments.items()
    }
    return Traced(moments, base.products + times * slope.products)


def _minus(more: Counter[str], less: Counter[str]) -> Counter[str]:
    return Counter({part: more[part] - less[part] for part in PARTS})


_KEPT: dict[str, Traced] = {}


@dataclass(frozen=True)
class Step:
    """What is traced, but for the number of layers; fields as of `traced`."""

    subject: Subject
    run: RunConfig
    arguments: TrainingArguments
    precision: torch.dtype
    batches: tuple[Batch | None, Batch | None]
    on_gpu: bool

    def trace(self, frozen: int, trained: int) -> Traced:
        """With so many layers; the same trace is not made twice in a process."""
        key = f"{self._key()} {frozen} {trained}"
        if key not in _KEPT:
            _KEPT[key] = self._new_trace(frozen, trained)
        return _KEPT[key]

    def _key(self) -> str:
        shapes = [
            batch and (tuple(batch["input_ids"].shape), len(batch["targets"]), batch["row_lengths"].tolist())
            for batch in self.batches
        ]
        run = self.run
        settings = (run.model, run.method, run.lora, run.ptuning, self.arguments.to_json_string())
        return repr((self.subject.folder, self.subject.config, settings, self.precision, shapes, self.on_gpu))

    def _new_trace(self, frozen: int, trained: int) -> Traced:
        subject, run, arguments = self.subject, self.run, self.arguments
        mixed = arguments.bf16 or arguments.fp16
        adapter = method_of(run, subject.family, self.precision).keeps == "adapter"
        watch = Watch(int(subject.config.vocab_size))
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            model = build(subject, run, self.precision, mixed, frozen + trained, trained)
            policy = _CudaAutocast if self.on_gpu and mixed else contextlib.nullcontext
            with _without_memory(), policy(), _computed_as(self.on_gpu):
                _put_on_cpu(model)
                # Batches stay real: where rows end is read from them.
                run_steps(watch, model, arguments, *self.batches, adapter, policy)
        return Traced(watch.moments, watch.products)


@contextlib.contextmanager
def _without_memory() -> Iterator[None]:
    """Tensors made here have shapes, types and storages of the right size, but no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@contextlib.contextmanager
def _computed_as(on_gpu: bool) -> Iterator[None]:
    """On a GPU attention takes rows in groups, and packed matrices are unpacked in larger chunks; the trace is on the
    CPU."""
    ours, chunk = loss.lay_out, linear._CPU_CHUNK
    loss.lay_out = partial(ours, single=not on_gpu)
    linear._CPU_CHUNK = linear._DEVICE_CHUNK if on_gpu else chunk
    try:
        yield
    finally:
        loss.lay_out, linear._CPU_CHUNK = ours, chunk


def _put_on_cpu(model: nn.Module) -> None:
    """Replace tensors of the meta device by fake ones on the CPU: autocast and attention choose by device."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                held[name] = made[id(tensor)]  # type: ignore[assignment]


class _CudaAutocast(TorchFunctionMode):
    """What CUDA's autocast computes in fp32 and the CPU's does not, of what these models call."""

    _IN_FP32 = (F.layer_norm, torch.layer_norm, F.softmax, torch.softmax, torch.Tensor.softmax)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._IN_FP32 and torch.is_autocast_enabled("cpu"):
            args = tuple(a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)
        return func(*args, **(kwargs or {}))
