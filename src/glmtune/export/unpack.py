"""Packed weights as ordinary ones again. What packing lost does not come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from glmtune.quantization.packed_linear import PackedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def unpack_model(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Put plain linears with the numbers that the packed ones stand for in their place, one layer at a time.

    Args:
        model: with packed layers; changed in place.
        dtype: of the new weights.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            with torch.device("meta"):
                linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight = nn.Parameter(module.dequantize_weight(dtype), requires_grad=False)
            if module.bias is not None:
                linear.bias = module.bias
            model.set_submodule(name, linear)
    model.config.quantization_bit = None
    return model
