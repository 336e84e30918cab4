"""Merge an adapter into the weights of its base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import TrainableTokensWrapper
from torch import nn

from glmtune.errors import ModelError
from glmtune.methods.lora_tokens import merge_token_rows
from glmtune.models.shared_head import separate_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Add the active adapter into the base's weights and remove the wrapper, one module at a time.

    Update and sum are computed in fp32 and rounded once to the base's precision: a merged weight differs from the
    exact one by at most 2**-8 of itself in bf16 and 2**-11 in fp16; in fp32 only by the rounding of the sum itself.

    Args:
        model: from `load_adapter` or `Lora.prepare`; used up.

    Returns:
        The base, changed in place.

    Raises:
        ModelError: the base is quantised.
    """
    base: Any = model.get_base_model()
    layers: list[tuple[str, Any]] = [
        (path, module) for path, module in base.named_modules() if isinstance(module, LoraLayer)
    ]
    for path, layer in layers:
        if not layer.get_base_layer().weight.is_floating_point():
            raise ModelError(
                f"An adapter cannot be merged into a quantised base ({path} holds integers).",
                "Load the base in full precision, merge there and quantise the result.",
            )
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if any(layer in ends for _, layer in layers):
        separate_head(base)  # else the update would be added to both
    for path, layer in layers:
        layer.merge()  # the adapter is in fp32, so peft's sum is too, until it is stored
        _replace_module(base, path, layer.get_base_layer())
    for path, module in list(base.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            _replace_module(base, path, _get_trained_module(module))
        elif isinstance(module, TrainableTokensWrapper):
            _replace_module(base, path, merge_token_rows(module))
    for module in base.modules():
        _cast_bias(module)
    base.__dict__.pop("peft_config", None)
    return base.requires_grad_(False)


def _get_trained_module(wrapper: ModulesToSaveWrapper) -> nn.Module:
    """The copy that was trained, in the precision of the module it takes the place of."""
    original: Any = wrapper.original_module
    trained: nn.Module = wrapper.modules_to_save[wrapper.active_adapters[0]]
    return trained.to(original.weight.dtype)


def _cast_bias(module: nn.Module) -> None:
    """Biases are trained in fp32 inside the base itself."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter) and bias.dtype != weight.dtype:
        bias.data = bias.data.to(weight.dtype)


def _replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
