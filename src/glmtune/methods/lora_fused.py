"""The update of an adapter in training, `result + scale * dropout(x) A B`, as one step of the graph.

peft's own is a chain of operations: each module casts its input to fp32 and back under autocast, and keeps a copy of
it after the dropout for the backward pass. Here the input is stored once, unchanged, with the dropout's decisions.

Shapes: T positions, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.autograd.function import once_differentiable

# Of peft.tuners.lora: layers around an ordinary linear module and around those of bitsandbytes.
_KINDS = ("Linear", "Linear4bit", "Linear8bitLt")


def fuse_updates(model: nn.Module) -> None:
    """Let the LoRA layers of `model` compute their updates this way while they train; nothing else about them changes.

    Layers of other kinds and variants (DoRA) keep peft's way.
    """
    for module in model.modules():
        kind: Any = type(module)
        if isinstance(module, LoraLayer) and kind.__name__ in _KINDS:
            module.__class__ = _make_fused_forward(kind)


@cache
def _make_fused_forward(kind: Any) -> type:
    return type(f"Fused{kind.__name__}", (_Fused, kind), {})


class _Fused:
    """A layer of peft with another forward pass."""

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        [name] = self.active_adapters if len(self.active_adapters) == 1 else [None]
        if not self.training or args or kwargs or self.disable_adapters or self.merged or name not in self.lora_A:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        down_RI, up_OR = self.lora_A[name].weight, self.lora_B[name].weight
        if name in self.lora_variant or hasattr(up_OR, "ds_id"):  # ZeRO-3 brings weights to the modules they belong to
            return super().forward(x)  # type: ignore[misc]
        result = self.base_layer(x)
        dropout = getattr(self.lora_dropout[name], "p", 0.0)
        updated = _Update.apply(
            x.flatten(0, -2).to(result.dtype), down_RI, up_OR, result.flatten(0, -2), self.scaling[name], dropout
        )
        return updated.view_as(result)


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: torch.Tensor,
        down_RI: torch.Tensor,
        up_OR: torch.Tensor,
        result_TO: torch.Tensor,
        scale: float,
        dropout: float,
    ) -> torch.Tensor:
        with torch.autocast(x_TI.device.type, enabled=False):
            keep_TI = draw_dropout_mask(x_TI.shape, dropout, x_TI.device) if dropout else None
            ctx.scale = scale / (1 - dropout)
            low_TR = F.linear(_drop_input(x_TI, keep_TI), down_RI.to(x_TI.dtype))
            ctx.save_for_backward(x_TI, keep_TI, low_TR, down_RI, up_OR)
            return torch.addmm(result_TO, low_TR, up_OR.to(x_TI.dtype).T, alpha=ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, keep_TI, low_TR, down_RI, up_OR = ctx.saved_tensors
        with torch.autocast(x_TI.device.type, enabled=False):
            scaled_TO = grad_TO * ctx.scale if ctx.scale != 1 else grad_TO
            low_grad_TR = scaled_TO @ up_OR.to(grad_TO.dtype)
            up_grad_OR = (scaled_TO.T @ low_TR).to(up_OR.dtype)
            down_grad_RI = (low_grad_TR.T @ _drop_input(x_TI, keep_TI)).to(down_RI.dtype)
            x_grad_TI = None
            if ctx.needs_input_grad[0]:
                x_grad_TI = _drop_input(low_grad_TR @ down_RI.to(grad_TO.dtype), keep_TI)
        return x_grad_TI, down_grad_RI, up_grad_OR, grad_TO, None, None


def _drop_input(x_TI: torch.Tensor, keep_TI: torch.Tensor | None) -> torch.Tensor:
    """Without the scale that makes up for what is dropped."""
    return x_TI if keep_TI is None else x_TI * keep_TI


def draw_dropout_mask(shape: torch.Size, dropout: float, device: torch.device) -> torch.Tensor:
    """Random decisions, bool: True with probability `1 - dropout`, exact to 1 in 65,536 on a CPU.

    There, four decisions come from one random number of 64 bits; torch's own dropout draws one for each.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1 - dropout)
    count = shape.numel()
    numbers = torch.empty(-(-count // 4), dtype=torch.long).random_(-(2**63), None)
    return (numbers.view(torch.int16)[:count] >= round(dropout * 65_536) - 32_768).view(shape)
