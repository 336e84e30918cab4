"""The loss: the head applied at target positions only, the mean taken over all targets of an optimiser step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from glmtune.families import IGNORE


def row_losses(model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy and number of targets of each row.

    Args:
        model: any causal model with `logits_to_keep`.
        batch: from `glmtune.data.batches.PadRight`.

    Returns:
        sums (B,) in fp32 and counts (B,).
    """
    targets_BU = batch["targets"]
    logits_BUV = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        logits_to_keep=batch["logits_to_keep"],
        use_cache=False,
    ).logits
    losses_BU = F.cross_entropy(
        logits_BUV.float().flatten(0, 1), targets_BU.flatten(), ignore_index=IGNORE, reduction="none"
    ).view_as(targets_BU)
    return losses_BU.sum(dim=1), (targets_BU != IGNORE).sum(dim=1)
