"""What a step of a reward model minimises: the Bradley-Terry loss of pairs, on packed rows.

Shapes: R rows of a batch, P = R / 2 pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from glmtune.config import RunConfig
from glmtune.preference.judged_rows import PairedRows, find_pairs
from glmtune.preference.losses import compute_reward_losses
from glmtune.training.loss import LossSettings
from glmtune.training.row_scores import compute_row_scores
from glmtune.training.stage_metrics import REWARD_METRICS


class RewardObjective(PairedRows):
    """The loss of a reward model; implements `glmtune.training.objective.Objective`.

    Args:
        config: of the run; its stage is `rm`.
    """

    metric_names = REWARD_METRICS

    def __init__(self, config: RunConfig):
        super().__init__()
        self._options = config.preference

    def compute_losses(self, model: nn.Module, batch: dict[str, Any], settings: LossSettings | None) -> torch.Tensor:
        """Losses (P,) in fp64, and sums for the metrics. Idle rows have no part in either.

        Args:
            model: with a value head, in training or evaluation mode.
            batch: from `BlockCollator`, whose rows are pairs.
            settings: of training; None for an evaluation.
        """
        rewards_R = compute_row_scores(model, batch, settings).double()
        places_P = find_pairs(batch).to(rewards_R.device)
        better_P, worse_P = rewards_R[2 * places_P], rewards_R[2 * places_P + 1]
        margins_P = batch["values"].to(rewards_R.device)[2 * places_P]
        losses_P = compute_reward_losses(better_P, worse_P, margins_P, self._options)
        difference_P = better_P - worse_P
        values = [(1 + difference_P.sign()) / 2, difference_P, better_P, worse_P, (better_P + worse_P) / 2]
        self.add_metrics(torch.stack(values), settings is None)
        return losses_P
