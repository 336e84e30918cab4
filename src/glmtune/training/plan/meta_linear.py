"""Linears that take the memory bitsandbytes' take, for tracing: its own parameters cannot be tensors without memory.

After `MatMul4Bit`, `MatMul8bitLt` and `MatMul8bitFp` of bitsandbytes 0.50: a weight is unpacked whole for each product,
forward and backward, and not kept; int8 keeps the layer's input for the backward pass, nf4 does not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_BLOCK = 64  # weights that share a scale
_SCALES = 256  # scales that share a scale of their own, with double quantisation


def hold_in_fewer_bits(model: Any, kind: str, dtype: torch.dtype, double: bool) -> None:
    """Put stand-ins in place of all linears but the head.

    Args:
        model: on the meta device.
        kind: `nf4` or `int8`.
        dtype: what products are computed in.
        double: quantise nf4's scales too.
    """
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head:
            model.set_submodule(name, StandIn(module, kind, dtype, double))


def packed_bytes(numbers: int, rows: int, kind: str, double: bool) -> int:
    """Bytes of a quantised matrix with its scales."""
    if kind == "int8":
        return numbers + 4 * rows
    scales = -(-numbers // _BLOCK)
    # Every matrix has a table of 16 fp32 numbers, and the mean of its scales.
    return numbers // 2 + 4 * 16 + (scales + 4 * -(-scales // _SCALES) + 4 if double else 4 * scales)


class StandIn(nn.Linear):
    """A linear whose weight has a quantised matrix' bytes."""

    def __init__(self, linear: nn.Linear, kind: str, dtype: torch.dtype, double: bool):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta", dtype=dtype)
        size = packed_bytes(linear.weight.numel(), linear.out_features, kind, double)
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.kind, self.computes_in = kind, dtype

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            inputs = inputs.to(torch.get_autocast_dtype("cpu"))
        outputs = _Multiply.apply(inputs, self)
        return outputs.clone() if self.kind == "nf4" else outputs  # as peft does with outputs of 4-bit layers


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: StandIn) -> torch.Tensor:
        ctx.layer, ctx.kept = layer, inputs if layer.kind == "int8" else None
        return F.linear(inputs, _unpacked(layer).to(inputs.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient @ _unpacked(ctx.layer).to(gradient.dtype), None


def _unpacked(layer: StandIn) -> torch.Tensor:
    device = layer.weight.device
    return torch.empty(layer.out_features, layer.in_features, dtype=layer.computes_in, device=device)
