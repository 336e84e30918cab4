"""The loss: the head applied at target positions only, the mean taken over all targets of an optimiser step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from glmtune.models.packed_attention import lay_out, separates_rows, takes_positions
from glmtune.training.head import head_losses


def target_losses(model: nn.Module, head: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Cross-entropy of every target, (N,) in fp32.

    Args:
        model: any causal model, wrapped or not, whose attention was set by
            `glmtune.models.packed_attention.separate_rows`.
        head: the part of it that turns hidden states into logits.
        batch: from `glmtune.data.batches.Collate`.
    """
    inputs = model_inputs(model, batch)
    with _head_gives_losses(head, batch["target_positions"], batch["targets"]):
        return model(**inputs, use_cache=False).logits


def model_inputs(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """The part of a batch that goes into the model.

    Raises:
        ValueError: the model's attention would let rows see each other.
    """
    whole = getattr(model, "module", model)
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    if takes_positions(whole):
        return inputs
    if not separates_rows(whole):
        raise ValueError("the model's attention does not tell rows apart: call separate_rows(model) first")
    ids_1T = batch["input_ids"]
    rows = lay_out(batch["row_lengths"].tolist(), batch["contexts"].tolist(), ids_1T.device)
    # A mask of four dimensions is passed on as it is; without one, transformers would make its own of all positions.
    return inputs | {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids_1T.device), "rows": rows}


@contextmanager
def _head_gives_losses(head: Any, positions_N: torch.Tensor, targets_N: torch.Tensor) -> Iterator[None]:
    """Let `head` return the losses (N,) at the given positions instead of logits everywhere.

    Most positions are prompt, whose logits nobody needs. It happens within the head's own call, because hooks on it
    bring its weights together where processes share them out.
    """
    forward, own = head.forward, vars(head).get("forward")  # one set on it before, by accelerate say

    def losses(hidden_1TH: torch.Tensor) -> torch.Tensor:
        return head_losses(head, forward, hidden_1TH.flatten(0, 1)[positions_N], targets_N)

    head.forward = losses
    try:
        yield
    finally:
        del head.forward
        if own is not None:
            head.forward = own
