"""Weights in the layout that the CPU's kernels read fastest, while a model generates.

`F.linear` takes a matrix in its plain layout. With one row of input its time goes into repacking the matrix, or into a
kernel made for other shapes; prepacked once, the matrix is read at nearly the memory's speed (docs/bench.md). Only one
matrix at a time is in memory in both layouts, and the plain one is restored bit for bit; a matrix that cannot be is not
prepacked.

Shapes: M rows of input (all dimensions but the last), O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from glmtune.generation.compiled_step import find_compiled_step
from glmtune.models.shared_head import separate_head, share_equal_head
from glmtune.quantization.packed_linear import PackedLinear
from glmtune.training.memory import is_out_of_memory

# Of a weight in fp32: 1.2 times as fast prepacked from 256 x 1152 on, half as fast at 256 x 256.
_MIN_ELEMENTS = 1 << 17

# Narrower matrices gain nothing.
_MIN_WIDTH = 32

# The layout for this many rows serves more of them as well.
_MOST_ROWS = 16

_SHARED_BEFORE = "_shared_head_before_prepacking"


@dataclass(frozen=True)
class PrepackFormat:
    """A library's own memory layout of a matrix."""

    pack: Callable[[torch.Tensor, int], Any]
    """From a weight and the usual number of rows of input."""
    unpack: Callable[[Any], torch.Tensor]
    """The inverse of `pack`."""
    multiply: Callable[[torch.Tensor, Any, torch.Tensor | None], torch.Tensor]
    """From input (..., I), packed weight and bias to (..., O)."""
    finite_only: bool = False
    """An infinity would come back as the largest number."""
    has_overhead: bool = False
    """Matrices below `_MIN_ELEMENTS` are multiplied faster as they are."""


class _PrepackedLayer(nn.Module):
    """Replaces an `nn.Linear`, whose weight is elsewhere in another layout; has no backward pass of its own."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._linear = [linear]  # in a list, so that it is no submodule
        self.bias = linear.bias
        linear.weight.data = linear.weight.new_empty(0)
        self.train(linear.training)

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the weight in its plain layout, (O, I), made at every access."""
        raise NotImplementedError

    def restore_linear(self) -> nn.Linear:
        """Return the layer that it replaced, with its weight; afterwards this one is unusable."""
        (linear,) = self._linear
        linear.weight.data = self._restore_weight()
        return linear

    def _restore_weight(self) -> torch.Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight


class PrepackedLinear(_PrepackedLayer):
    """A layer with a matrix of its own.

    Args:
        linear: whose weight it takes over and later gives back.
        layout: for the weight's precision.
        rows: usual number of rows of input.
    """

    def __init__(self, linear: nn.Linear, layout: PrepackFormat, rows: int = 1):
        packed = layout.pack(linear.weight.detach(), rows)  # first: where memory ends, the layer stays as it is
        super().__init__(linear)
        self._layout, self._dtype, self._packed = layout, linear.weight.dtype, packed

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the weight in its plain layout, (O, I), made at every access."""
        return self._layout.unpack(self._packed)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., I) to (..., O), in the weight's precision."""
        inputs = inputs.to(self._dtype)
        if torch.is_grad_enabled() and inputs.requires_grad:
            return F.linear(inputs, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.detach().to(self._dtype)
        return self._layout.multiply(inputs, self._packed, bias)

    def _restore_weight(self) -> torch.Tensor:
        weight, self._packed = self.weight, None
        return weight


class PrepackedJoint:
    """The matrices of layers with one input (queries, keys and values) as one, for `PrepackedPart`s.

    Args:
        linears: with biases all, or none.
        layout: for the weights' precision.
        rows: usual number of rows of input.
    """

    def __init__(self, linears: list[nn.Linear], layout: PrepackFormat, rows: int):
        self.layout, self.dtype = layout, linears[0].weight.dtype
        self._packed = layout.pack(torch.cat([linear.weight.detach() for linear in linears]), rows)
        biases = [linear.bias for linear in linears if linear.bias is not None]
        self._bias = torch.cat([bias.detach() for bias in biases]).to(self.dtype) if biases else None
        self._plain: torch.Tensor | None = None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., I) to the outputs of all layers, one after the other."""
        return self.layout.multiply(inputs.to(self.dtype), self._packed, self._bias)

    def unpack(self) -> torch.Tensor:
        """A copy of the joint weight."""
        return self.layout.unpack(self._packed)

    def restore(self) -> torch.Tensor:
        """The joint weight, the same tensor at every call."""
        if self._plain is None:
            self._plain, self._packed = self.unpack(), None
        return self._plain


class PrepackedPart(_PrepackedLayer):
    """One of the layers of a `PrepackedJoint`. Attention calls `joint` in place of its three layers.

    Args:
        linear: whose weight is a part of the joint one.
        joint: all of them.
        start: first output of this layer.
    """

    def __init__(self, linear: nn.Linear, joint: PrepackedJoint, start: int):
        super().__init__(linear)
        self.joint = joint
        self._outputs = slice(start, start + linear.out_features)

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the weight in its plain layout, (O, I), made at every access."""
        return self.joint.unpack()[self._outputs]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., I) to (..., O), where the three outputs are not asked for together."""
        return F.linear(inputs.to(self.joint.dtype), self.weight, self.bias)

    def _restore_weight(self) -> torch.Tensor:
        return self.joint.restore()[self._outputs]


def prepack_weights(model: nn.Module, rows: int = 1) -> list[nn.Module]:
    """Prepack what can be: matrices on the CPU that one layer alone uses; nothing of a model with a compiled step.

    Args:
        model: will answer, and is not trained, merged or moved before `restore_weights`.
        rows: usual number of rows of input, the size of a batch: the layout for many is slower with one in fp32.

    Returns:
        The layers that were changed, for `restore_weights`. After an error none is.
    """
    changed: list[nn.Module] = []
    if find_compiled_step(model):
        return changed
    _separate_head(model)
    try:
        _prepack_linears(model, changed, rows)
    except BaseException:
        restore_weights(model, changed)
        raise
    return changed


def _prepack_linears(model: nn.Module, changed: list[nn.Module], rows: int) -> None:
    """Adds each layer to `changed` as soon as it is."""
    shared, adapters = _list_shared_weights(model), _list_adapter_weights(model)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())  # an embedding's
    for name, module in list(model.named_modules()):
        if hasattr(module, "joins_projections"):
            _prepack_joint(module, shared, changed, rows)
        elif isinstance(module, PackedLinear):
            if module.prepack(dtype):
                changed.append(module)
        elif type(module) is nn.Linear and id(module) not in adapters and _is_prepackable(module, shared):
            layout = pick_format(module.weight.dtype)
            if layout is None or _is_too_small(module.weight.numel(), layout):
                continue
            if not _is_read_elsewhere(model, name) and _is_restorable(module.weight, layout):
                changed.append(PrepackedLinear(module, layout, rows))
                _replace_weight(model, name, changed[-1])


def _prepack_joint(attention: Any, shared: set[int], changed: list[nn.Module], rows: int) -> None:
    """Prepack queries, keys and values as one matrix, if nothing is added to one of them."""
    names = ("q_proj", "k_proj", "v_proj")
    linears = [getattr(attention, name) for name in names]
    if any(type(linear) is not nn.Linear for linear in linears):
        return
    weights = [linear.weight for linear in linears]
    layout = pick_format(weights[0].dtype)
    # Weights that were split from a published one may share its memory, but with no others.
    storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in weights}
    if (
        layout is None
        or len({weight.dtype for weight in weights}) > 1
        or len({linear.bias is None for linear in linears}) > 1
        or sum(weight.nbytes for weight in weights) != sum(storages.values())
        or not all(_is_used_alone(linear, shared) for linear in linears)
        or not all(_is_restorable(weight, layout) for weight in weights)
    ):
        return
    if _is_too_small(sum(weight.numel() for weight in weights), layout):
        layout = _PLAIN
    joint, start = PrepackedJoint(linears, layout, rows), 0
    for name, linear in zip(names, linears, strict=True):
        changed.append(PrepackedPart(linear, joint, start))
        setattr(attention, name, changed[-1])
        start += linear.out_features


def restore_weights(model: nn.Module, changed: list[nn.Module]) -> None:
    """Undo `prepack_weights`."""
    remaining = {id(module) for module in changed}
    for module in changed:
        if isinstance(module, PackedLinear):
            module.unprepack()
    for name, module in list(model.named_modules()):
        if isinstance(module, _PrepackedLayer) and id(module) in remaining:
            _replace_weight(model, name, module.restore_linear())
    base: Any = _get_base(model)
    if base.__dict__.pop(_SHARED_BEFORE, False):
        share_equal_head(base)


def _separate_head(model: nn.Module) -> None:
    """Give a head on the CPU a matrix of its own to prepack; `restore_weights` undoes it."""
    base: Any = _get_base(model)
    if getattr(base, "writes_shared_head", False) and base.device.type == "cpu" and pick_format(base.dtype):
        base.__dict__[_SHARED_BEFORE] = separate_head(base)


def _get_base(model: Any) -> nn.Module:
    """The model inside an adapter."""
    base: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


@contextmanager
def prepacked(model: nn.Module, rows: int = 1) -> Iterator[None]:
    """Prepack the weights during the block. Inside another such block, or without enough memory, nothing happens."""
    try:
        changed = prepack_weights(model, rows)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        changed = []
    try:
        yield
    finally:
        restore_weights(model, changed)


@cache
def pick_format(dtype: torch.dtype) -> PrepackFormat | None:
    """The order for matrices of this precision; None where this machine or this torch has none that computes right."""
    layout = {torch.float32: _ONEDNN_FP32, torch.bfloat16: _ONEDNN, torch.float16: _FBGEMM}.get(dtype)
    if layout is None:
        return None
    # Tested here: these are not public functions of torch. Small whole numbers have one right result.
    weight_OI = (torch.arange(96 * 64).reshape(96, 64) % 13 - 6).to(dtype)
    inputs_MI = (torch.arange(3 * 64).reshape(3, 64) % 3 - 1).to(dtype)
    bias_O = (torch.arange(96) % 5).to(dtype)
    expected_MO = (inputs_MI.float() @ weight_OI.float().T + bias_O.float()).to(dtype)
    try:
        packed = layout.pack(weight_OI, 1)
        is_exact = torch.equal(layout.multiply(inputs_MI, packed, bias_O), expected_MO)
        is_exact = is_exact and torch.equal(layout.unpack(packed), weight_OI)
    except (RuntimeError, AttributeError, NotImplementedError):
        return None
    return layout if is_exact else None


def _onednn_pack(weight_OI: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI, min(rows, _MOST_ROWS))


def _onednn_multiply(inputs: torch.Tensor, packed: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, packed, bias_O, "none", [], "")


def _fbgemm_pack(weight_OI: torch.Tensor, rows: int) -> Any:
    return torch.ops.quantized.linear_prepack_fp16(weight_OI.float(), None)


def _fbgemm_unpack(packed: Any) -> torch.Tensor:
    return torch.ops.quantized.linear_unpack_fp16(packed)[0].half()


def _fbgemm_multiply(inputs: torch.Tensor, packed: Any, bias_O: torch.Tensor | None) -> torch.Tensor:
    """fp16 weights, fp32 arithmetic: few processors multiply fp16."""
    outputs = torch.ops.quantized.linear_dynamic_fp16(inputs.float(), packed)
    return (outputs if bias_O is None else outputs.add_(bias_O)).half()


_ONEDNN = PrepackFormat(_onednn_pack, lambda packed: packed.to_dense(), _onednn_multiply)
_ONEDNN_FP32 = replace(_ONEDNN, has_overhead=True)
_PLAIN = PrepackFormat(lambda weight_OI, rows: weight_OI.clone(), lambda packed: packed, F.linear)
_FBGEMM = PrepackFormat(_fbgemm_pack, _fbgemm_unpack, _fbgemm_multiply, finite_only=True)


def _replace_weight(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _is_prepackable(linear: nn.Linear, shared: set[int]) -> bool:
    """Whether nothing but its own forward pass uses the layer's weight and its memory."""
    # Sharded training keeps many weights in one piece of memory, where they must stay.
    return _is_used_alone(linear, shared) and linear.weight.untyped_storage().nbytes() == linear.weight.nbytes


def _is_used_alone(linear: nn.Linear, shared: set[int]) -> bool:
    """Whether nothing but its own forward pass uses the layer's weight."""
    weight = linear.weight
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and id(weight) not in shared
        and weight.ndim == 2
        and min(weight.shape) >= _MIN_WIDTH
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
    )


def _is_too_small(elements: int, layout: PrepackFormat) -> bool:
    return layout.has_overhead and elements < _MIN_ELEMENTS


def _is_restorable(weight_OI: torch.Tensor, layout: PrepackFormat) -> bool:
    return not layout.finite_only or bool(weight_OI.isfinite().all())


def _list_adapter_weights(model: nn.Module) -> set[int]:
    """Modules of peft's layers other than the adapted one; peft reads the precision of their weights at every token."""
    inside: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            inside |= {id(m) for m in layer.modules()} - {id(m) for m in layer.get_base_layer().modules()}
    return inside


def _list_shared_weights(model: nn.Module) -> set[int]:
    """Weights that several modules share, such as an embedding that is also the head."""
    weights: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in weights else weights).add(id(parameter))
    return shared


def _is_read_elsewhere(model: nn.Module, name: str) -> bool:
    """Whether an adapter around the layer looks at its weight for every token: DoRA takes its norm."""
    parent = model.get_submodule(name.rpartition(".")[0])
    return any(getattr(parent, "use_dora", {}).values())
