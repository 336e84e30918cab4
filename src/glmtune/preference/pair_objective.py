"""What a step of dpo, orpo and simpo minimises, on packed rows: of each pair the better row and then the worse one.

Shapes: N targets of a batch, R rows, P = R / 2 pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.preference.answer_logps import compute_answer_logps, sum_by_row
from glmtune.preference.judged_rows import PairedRows, find_pairs
from glmtune.preference.losses import AnswerScores, compute_pair_losses
from glmtune.training.loss import LossSettings, step_loss
from glmtune.training.stage_metrics import PAIR_METRICS
from glmtune.training.training_data import TrainingData


class PreferenceObjective(PairedRows):
    """The loss of pairs; implements `glmtune.training.objective.Objective`.

    Args:
        config: of the run; its stage is `dpo`, `orpo` or `simpo`.
    """

    metric_names = PAIR_METRICS

    def __init__(self, config: RunConfig):
        super().__init__()
        self._stage, self._options = config.stage, config.preference
        self.stops_at_zero_loss = config.preference.loss != "hinge"  # which is 0 for pairs that differ enough
        self._references: dict[bool, torch.Tensor] = {}

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the model as it was before training."""
        return self._stage == "dpo"

    def compute_reference(
        self, model: nn.Module, data: TrainingData, arguments: TrainingArguments, identity: str = ""
    ) -> None:
        """Compute the log-probability of every answer under the model as it is now.

        Args:
            model: the reference: the base, with the adapter that training starts from if there is one.
            data: rows to train on and to evaluate on.
            arguments: of the training, for device and precision.
            identity: see `compute_answer_logps`.
        """
        for is_evaluation, dataset in ((False, data.train), (True, data.eval)):
            if dataset is not None:
                table_R = compute_answer_logps(model, dataset, data.collate, arguments, is_evaluation, identity)
                self._references[is_evaluation] = table_R

    def compute_losses(self, model: nn.Module, batch: dict[str, Any], settings: LossSettings | None) -> torch.Tensor:
        """Losses (P,) in fp64, and sums for the metrics. Idle rows have no part in either.

        Args:
            model: in training or evaluation mode.
            batch: from `BlockCollator`, whose rows are pairs.
            settings: of training; None for an evaluation.
        """
        losses_N = step_loss(model, batch, settings=settings)
        sums_R, lengths_R = sum_by_row(-losses_N, batch)
        # On the CPU, as the numbers of the rows are: what is chosen there is sent to the device without waiting for it.
        numbers_R = batch["rows"].cpu()
        places_P = find_pairs(batch)
        if not len(places_P):
            return losses_N  # an idle block has no target
        table = self._references[settings is None] if self.needs_reference else None

        def select_side(start: int) -> AnswerScores:
            places = 2 * places_P + start
            reference_P = None if table is None else table[numbers_R[places]].to(sums_R.device, non_blocking=True)
            places = places.to(sums_R.device, non_blocking=True)
            return AnswerScores(sums_R[places], lengths_R[places], reference_P)

        better, worse = select_side(0), select_side(1)
        result = compute_pair_losses(self._stage, better, worse, self._options)
        better_P, worse_P = result.better_rewards_P, result.worse_rewards_P
        # Equal rewards, as before the first step, count half: chance.
        wins_P = (1 + (better_P - worse_P).sign()) / 2
        values = [wins_P, better_P - worse_P, better_P, worse_P, better.sums_P, worse.sums_P]
        self.add_metrics(torch.stack(values), settings is None)
        return result.losses_P
