"""The official layout as a quantisation method of transformers: packed weights are read, others packed while read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from glmtune.quantization.packed import quantize
from glmtune.quantization.packed_linear import PackedLinear

_METHOD = "glm_packed"


@register_quantization_config(_METHOD)
class PackedQuantizationConfig(QuantizationConfigMixin):
    """Asks transformers for packed linears.

    Args:
        bits: 4 or 8.
    """

    def __init__(self, bits: int, **_: Any):
        self.quant_method = _METHOD  # type: ignore[assignment]  # an enumeration of transformers' own methods
        self.bits = bits


@register_quantizer(_METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts packed linears into the empty model, and packs weights that come in full precision, one at a time."""

    quantization_config: PackedQuantizationConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        replace_linears(model, self.quantization_config.bits)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        for layer in list_packed_layers(model):
            layer.weight_scale.requires_grad_(False)  # transformers makes every floating parameter trainable
        # From here on it is a model like any other, which trainers and `to()` need not be wary of.
        self.remove_quantization_config(model)
        model.config._is_quantized = False
        dtype = model.config.dtype
        assert isinstance(dtype, torch.dtype)  # from_pretrained has put it there
        cast_unpacked(model, dtype)
        model.config.quantization_bit = self.quantization_config.bits

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> None:
        """Packed checkpoints are read as they are, for scales must not be rounded; the rest is cast afterwards."""

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        module, _, leaf = param_name.rpartition(".")
        return not self.pre_quantized and leaf == "weight" and isinstance(model.get_submodule(module), PackedLinear)

    def get_quantize_ops(self) -> ConversionOps:
        return _PackWeights(self.quantization_config.bits)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


class _PackWeights(ConversionOps):
    """One full-precision weight to packed numbers and scales."""

    def __init__(self, bits: int):
        self.bits = bits

    def convert(  # type: ignore[override]  # returns tensors, as transformers' own quantisers do
        self, input_dict: dict[str, Any], **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        result = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            result[name], result[f"{name}_scale"] = quantize(weight, self.bits)
        return result


def replace_linears(model: PreTrainedModel, bits: int) -> None:
    """Empty packed linears in place of a model's own, all but the head; for a model without memory.

    Raises:
        ModelError: 4 bits and a layer with an odd number of inputs.
    """
    for name, linear in _list_layer_linears(model):
        with torch.device("meta"):
            layer = PackedLinear(
                linear.in_features, linear.out_features, bits, linear.bias is not None, linear.weight.dtype
            )
        model.set_submodule(name, layer)


def pack_model(model: PreTrainedModel, bits: int) -> PreTrainedModel:
    """Quantise a loaded model in place, one layer at a time: every linear but the head, as the official `quantize()`.

    Args:
        model: in full precision.
        bits: 4 or 8.

    Raises:
        ModelError: 4 bits and a layer with an odd number of inputs.
    """
    for name, linear in _list_layer_linears(model):
        model.set_submodule(name, PackedLinear.from_linear(linear, bits))
    model.config.quantization_bit = bits
    return model


def cast_unpacked(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring a model's weights to `dtype`; not packed ones, not scales, and not buffers: rotary frequencies in 16 bits
    are other positions."""
    scales = {id(layer.weight_scale) for layer in list_packed_layers(model)}
    for parameter in model.parameters():
        if parameter.is_floating_point() and id(parameter) not in scales:
            parameter.data = parameter.data.to(dtype)


def list_packed_layers(model: nn.Module) -> list[PackedLinear]:
    """All packed linears of a model."""
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


def get_quantization(model: nn.Module) -> str | None:
    """Get the quantisation of a model: `packed8`, `packed4`, `nf4` or `int8`; None for full precision."""
    packed = list_packed_layers(model)
    if packed:
        return f"packed{packed[0].bits}"
    if getattr(model, "is_loaded_in_4bit", False):
        return "nf4"
    return "int8" if getattr(model, "is_loaded_in_8bit", False) else None


def _list_layer_linears(model: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    head = model.get_output_embeddings()
    modules = model.named_modules()
    return [(name, module) for name, module in modules if type(module) is nn.Linear and module is not head]
