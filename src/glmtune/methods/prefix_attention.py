"""A prefix in front of every layer's keys and values, for any model that takes its attention from transformers.

A hook computes the prefix once per forward and passes it on as the keyword `prefix_kv`; attention functions of our own
put a layer's part in front of its keys. So it is an ordinary part of the graph: gradient checkpointing, data
parallelism, packing and generation need nothing special, and it is never in the cache.

Shapes: B batch, T queries, S keys (cached and new), P virtual tokens, N key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmtune.errors import ConfigError
from glmtune.methods.prefix_encoder import PrefixEncoder
from glmtune.models.attention_kernels import attend_sdpa
from glmtune.models.packed_attention import SEPARATE, attend_by_rows, attend_eagerly

_PREFIXED = "prefix_"
_ATTENTIONS = ("sdpa", "eager", f"{SEPARATE}sdpa", f"{SEPARATE}eager")
_ATTENTION_HINT = "Use model.attention sdpa (the default) or eager."


def attach_prefix(model: PreTrainedModel, encoder: PrefixEncoder) -> None:
    """Let every layer of `model` see the encoder's prefix, in place of one it may see already.

    The encoder becomes `prefix_encoder` of the inner model, where the published checkpoints have it. Saving the model
    leaves it out: saving writes the base.

    Raises:
        ConfigError: the model's attention is neither sdpa nor eager.
    """
    if find_prefix(model) is not None:
        remove_prefix(model)
    attention = model.config._attn_implementation
    if attention not in _ATTENTIONS:
        raise ConfigError(f"model.attention {attention} cannot take a prefix (method ptuning).", _ATTENTION_HINT)
    base: Any = model.base_model
    model.set_attn_implementation(f"{_PREFIXED}{attention}")
    base.prefix_encoder = encoder.to(model.device).train(model.training)
    base.prefix_hook = base.register_forward_pre_hook(_add_prefix, with_kwargs=True)
    model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *_list_weight_names(model)}


def remove_prefix(model: PreTrainedModel) -> PrefixEncoder:
    """Remove the prefix, so that the model is its base again.

    Returns:
        The encoder, for `attach_prefix`.

    Raises:
        ValueError: there is none.
    """
    encoder = find_prefix(model)
    if encoder is None:
        raise ValueError("the model has no prefix")
    model._keys_to_ignore_on_save = set(model._keys_to_ignore_on_save or ()) - _list_weight_names(model)
    base: Any = model.base_model
    base.prefix_hook.remove()
    del base.prefix_hook, base.prefix_encoder
    model.set_attn_implementation(model.config._attn_implementation.removeprefix(_PREFIXED))
    return encoder


@contextmanager
def disable_prefix(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The base, for as long as the block lasts.

    Raises:
        ValueError: the model has no prefix.
    """
    encoder = remove_prefix(model)
    try:
        yield model
    finally:
        attach_prefix(model, encoder)


def find_prefix(model: nn.Module) -> PrefixEncoder | None:
    """The encoder whose prefix the model sees."""
    return getattr(getattr(model, "base_model", None), "prefix_encoder", None)


def _list_weight_names(model: PreTrainedModel) -> set[str]:
    base: Any = model.base_model
    return {f"{model.base_model_prefix}.prefix_encoder.{name}" for name in base.prefix_encoder.state_dict()}


def _add_prefix(base: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook of the inner model."""
    attention = base.config._attn_implementation
    if not attention.startswith(_PREFIXED):
        raise ConfigError(f"The attention was set to {attention}, which leaves the prefix out.", _ATTENTION_HINT)
    if base.training and base.gradient_checkpointing and _is_reentrant(base):
        raise ConfigError(
            "Reentrant gradient checkpointing gives a prefix no gradients.",
            'Leave out use_reentrant, or set training.gradient_checkpointing_kwargs={"use_reentrant": false}.',
        )
    # Cast once for all layers and tokens; autocast alone decides what the keys beside it are.
    dtype = None if torch.is_autocast_enabled(base.device.type) else base.dtype
    return arguments, {**keywords, "prefix_kv": base.prefix_encoder(dtype)}


def _is_reentrant(base: Any) -> bool:
    return bool(base._gradient_checkpointing_func.keywords.get("use_reentrant"))  # transformers keeps it as a partial


def _make_prefix_attention(attend: Callable[..., Any]) -> Callable[..., Any]:
    """An attention function that looks at the layer's prefix first and leaves the rest to `attend`."""

    def attention(
        module: nn.Module,
        query_BHTD: torch.Tensor,
        key_BNSD: torch.Tensor,
        value_BNSD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        prefix_kv: torch.Tensor,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        key_BNSD, value_BNSD = _extend_states(module, key_BNSD, value_BNSD, prefix_kv)
        mask = _extend_mask(module, attention_mask, query_BHTD, key_BNSD, prefix_kv)
        return attend(module, query_BHTD, key_BNSD, value_BNSD, mask, **kwargs)

    return attention


def _extend_states(
    module: Any, key_BNSD: torch.Tensor, value_BNSD: torch.Tensor, prefix_kv: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with the layer's prefix in front, (B, N, P + S, D). Prefix keys are not rotated."""
    prefix_2NPD = prefix_kv[module.layer_idx]
    key, value = (
        torch.cat([prefix_NPD.to(text_BNSD).expand(len(text_BNSD), -1, -1, -1), text_BNSD], dim=2)
        for prefix_NPD, text_BNSD in zip(prefix_2NPD, (key_BNSD, value_BNSD), strict=True)
    )
    return key, value


def _extend_mask(
    module: Any,
    mask: torch.Tensor | None,
    query_BHTD: torch.Tensor,
    key_BNSD: torch.Tensor,
    prefix_kv: torch.Tensor,
) -> torch.Tensor | None:
    """The mask of the lengthened keys: every query sees the whole prefix.

    No mask means what it means without a prefix: all keys are seen, or the earlier ones where attention is causal.
    """
    queries, keys = query_BHTD.shape[2], key_BNSD.shape[2]
    if mask is not None and mask.shape[-1] == keys:  # made for rows, with the prefix
        return mask
    if mask is not None:
        # True where a mask is bool; an additive one is 0 where a key is seen.
        return F.pad(mask, (prefix_kv.shape[-2], 0), value=mask.dtype is torch.bool)
    if queries == 1 or not module.is_causal:
        return None
    # From the first key on: a cache of fixed size has unused places after the queries.
    prefix_length = prefix_kv.shape[-2]
    return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=key_BNSD.device).tril(prefix_length)


# Masks are made as for the attention without a prefix and widened here, layer by layer; those of packed rows once.
_sdpa = partial(attend_sdpa, is_causal=False)  # the extended mask says what is hidden
for name, attend, make_mask in (("sdpa", _sdpa, sdpa_mask), ("eager", attend_eagerly, eager_mask)):
    for variant, attention in (
        ("", _make_prefix_attention(attend)),
        (SEPARATE, attend_by_rows(_make_prefix_attention(attend), fused=name == "sdpa")),
    ):
        ALL_ATTENTION_FUNCTIONS.register(f"{_PREFIXED}{variant}{name}", attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(f"{_PREFIXED}{variant}{name}", make_mask)
