"""Rewards of packed rows by a model with a value head.

Shapes: R rows of a batch without padding, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from glmtune.methods.value_head import require_value_head
from glmtune.training.loss import LossSettings, add_embedding_noise, compute_in_head, select_model_inputs


def compute_row_scores(model: nn.Module, batch: dict[str, Any], settings: LossSettings | None = None) -> torch.Tensor:
    """Compute the reward of every row: its value head applied to the final hidden state of its last token.

    Args:
        model: as `step_loss` takes, with a value head.
        batch: from `glmtune.data.batches.BlockCollator`.
        settings: of training; none for evaluation.

    Returns:
        Rewards (R,) in fp32.
    """
    last_R = (batch["row_lengths"].cumsum(0) - 1).to(batch["input_ids"].device, non_blocking=True)
    value_head = require_value_head(model)

    def compute(_head: nn.Module, _forward: Callable[..., Any], hidden_TH: torch.Tensor) -> torch.Tensor:
        hidden_RH = hidden_TH.index_select(0, last_R)
        with torch.autocast(hidden_RH.device.type, enabled=False):  # in fp32 whatever the layers compute in
            return F.linear(hidden_RH.float(), value_head.weight.float())[:, 0]

    noise = settings.embedding_noise if settings else 0.0
    with compute_in_head(model, compute), add_embedding_noise(model, batch["row_lengths"], noise):
        scores_R: torch.Tensor = model(
            **select_model_inputs(model, batch), labels=batch["targets"], use_cache=False
        ).loss
        return scores_R
