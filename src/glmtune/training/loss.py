"""The loss: the head applied at target positions only, the mean taken over all targets of an optimiser step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_TO_MODEL = ("input_ids", "attention_mask", "position_ids")


def target_losses(model: nn.Module, head: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Cross-entropy of every target, (N,) in fp32.

    Args:
        model: any causal model, wrapped or not.
        head: the part of it that turns hidden states into logits.
        batch: from `glmtune.data.batches.Collate`.
    """
    inputs = model_inputs(model, batch)
    with _head_sees_only(head, batch["target_positions"]):
        logits_NV = model(**inputs, use_cache=False).logits
    return F.cross_entropy(logits_NV.float(), batch["targets"], reduction="none")


def model_inputs(model: nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The part of a batch that goes into the model.

    A boolean mask suits sdpa; the eager attention of transformers' models adds its mask to the scores instead.
    """
    inputs = {key: batch[key] for key in _TO_MODEL if key in batch}
    mask = inputs["attention_mask"]
    config: Any = getattr(model, "module", model).config
    if mask.dtype is torch.bool and config._attn_implementation == "eager":
        hidden = torch.finfo(torch.float32).min
        inputs["attention_mask"] = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, hidden)
    return inputs


@contextmanager
def _head_sees_only(head: nn.Module, positions_N: torch.Tensor) -> Iterator[None]:
    """Let `head` compute logits (N, V) at the given flat positions instead of (B, T, V) everywhere.

    Most positions are prompt, whose logits nobody needs, and 65,024 or 130,528 columns make the head and the loss as
    costly as several layers. `logits_to_keep` cannot say this: it takes the same positions from every row.
    """

    def pick(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BTH = arguments[0]
        return (hidden_BTH.reshape(-1, hidden_BTH.shape[-1])[positions_N], *arguments[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
