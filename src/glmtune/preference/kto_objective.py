"""What a step of KTO minimises (arXiv 2402.01306): the loss of single answers with a label, on packed rows.

Its reference point is an estimate of the KL divergence from the reference model, the mean log-ratio of answers to
other questions (`glmtune.data.mismatched_rows`). TRL takes the mean over a micro-batch. Here it is that over the whole
optimiser step, in all processes, so that the loss does not depend on how a step is split into micro-batches and packs;
an evaluation takes it over all its rows.

Shapes: N targets of a batch, R rows, P of them without idle ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.data.batches import BlockCollator, BlockDataset
from glmtune.preference.answer_logps import compute_answer_logps, sum_by_row
from glmtune.preference.judged_rows import JudgedRows
from glmtune.preference.losses import AnswerScores, compute_kto_losses
from glmtune.training.distributed import count_processes
from glmtune.training.loss import LossSettings, step_loss
from glmtune.training.stage_metrics import LABEL_METRICS
from glmtune.training.training_data import TrainingData
from glmtune.utils.console import print_message, print_warning

_FEW_ANSWERS = 4
"""Answers of a step from which the KL divergence cannot be estimated well; TRL refuses a micro-batch of one."""
_BALANCE = (1.0, 4 / 3)
"""Range that the paper gives for the weight of all good answers over that of all bad ones (equation 9)."""


class KtoObjective(JudgedRows):
    """The loss of labelled answers; implements `glmtune.training.objective.Objective`.

    Args:
        config: of the run; its stage is `kto`.
    """

    metric_names = LABEL_METRICS

    def __init__(self, config: RunConfig):
        super().__init__()
        self._options = options = config.preference
        # With a weight of 0, the loss of a micro-batch of one kind is 0.
        self.stops_at_zero_loss = bool(options.desirable_weight and options.undesirable_weight)
        self._references: dict[bool, torch.Tensor] = {}
        self._kl: dict[bool, torch.Tensor] = {}

    @property
    def needs_reference(self) -> bool:
        return True

    def compute_reference(
        self, model: nn.Module, data: TrainingData, arguments: TrainingArguments, identity: str = ""
    ) -> None:
        """Compute the log-probability of every answer, and of those to other questions, under the model as it is now.

        Args:
            model: the reference: the base, with the adapter that training starts from if there is one.
            data: rows to train on and to evaluate on.
            arguments: of the training, for device and precision.
            identity: see `compute_answer_logps`.
        """
        self._report_balance(data.train)
        _warn_of_small_steps(data.train, arguments)
        collate = BlockCollator(data.collate.family)  # both kinds of rows at once
        for is_evaluation, dataset in ((False, data.train), (True, data.eval)):
            if dataset is not None:
                self._references[is_evaluation] = compute_answer_logps(
                    model, dataset, collate, arguments, is_evaluation, identity
                )

    @torch.no_grad()
    def prepare_batches(self, model: nn.Module, batches: Iterable[dict[str, Any]], is_evaluation: bool) -> None:
        """Estimate the KL divergence, without dropout."""
        table_R = self._references[is_evaluation]
        device = next(model.parameters()).device
        total_2 = torch.zeros(2, dtype=torch.float64, device=device)
        was_training = model.training
        model.eval()
        for batch in batches:
            mismatched: Any = batch["mismatched"]
            rows = mismatched.to(device)
            sums_R, _ = sum_by_row(-step_loss(model, rows), rows)
            numbers_R = rows["rows"].cpu()
            places_P = (numbers_R >= 0).nonzero()[:, 0]
            ratios_P = sums_R[places_P.to(device)] - table_R[numbers_R[places_P]].to(device)
            total_2 += torch.stack([ratios_P.sum(), torch.tensor(float(len(places_P)), device=device)])
        model.train(was_training)
        if count_processes() > 1:
            torch.distributed.all_reduce(total_2)
        self._kl[is_evaluation] = (total_2[0] / total_2[1].clamp(min=1)).clamp(min=0)

    def compute_losses(self, model: nn.Module, batch: dict[str, Any], settings: LossSettings | None) -> torch.Tensor:
        """Losses (P,) in fp64, and sums for the metrics. Idle rows have no part in either.

        Args:
            model: in training or evaluation mode.
            batch: from `LabelledCollator`.
            settings: of training; None for an evaluation.
        """
        losses_N = step_loss(model, batch, settings=settings)
        sums_R, lengths_R = sum_by_row(-losses_N, batch)
        numbers_R = batch["rows"].cpu()
        places_P = (numbers_R >= 0).nonzero()[:, 0]
        if not len(places_P):
            return losses_N  # an idle block has no target
        is_evaluation = settings is None
        reference_P = self._references[is_evaluation][numbers_R[places_P]].to(sums_R.device)
        places_P = places_P.to(sums_R.device)
        answers = AnswerScores(sums_R[places_P], lengths_R[places_P], reference_P)
        is_good_P = batch["values"].to(sums_R.device)[places_P] > 0
        kl = self._kl[is_evaluation].to(sums_R.device)
        result = compute_kto_losses(answers, is_good_P, kl, self._options)
        rewards_P, logps_P = result.rewards_P, answers.sums_P.detach()
        values = [result.is_right_P.double(), rewards_P, rewards_P, logps_P, logps_P, kl.expand_as(rewards_P)]
        all_P = torch.ones_like(is_good_P)
        is_counted = [all_P, is_good_P, ~is_good_P, is_good_P, ~is_good_P, all_P]
        self.add_metrics(torch.stack(values), is_evaluation, torch.stack(is_counted))
        return result.losses_P

    def _report_balance(self, dataset: BlockDataset) -> None:
        """Say how many good and bad answers there are, and which weights would balance them."""
        labels = [dataset.rows.values[row] for block in dataset.blocks for row in block[::2]]
        good = sum(value > 0 for value in labels)
        bad = len(labels) - good
        print_message(f"Labels: {good:,} good and {bad:,} bad answers.")
        if not good or not bad:
            print_warning(f"All answers are {'bad' if not good else 'good'}: KTO learns most from both kinds.")
            return
        options = self._options
        if not options.desirable_weight or not options.undesirable_weight:
            return  # the user wants one kind alone
        low, high = _BALANCE
        balance = options.desirable_weight * good / (options.undesirable_weight * bad)
        if not low <= round(balance, 2) <= round(high, 2):
            base = options.undesirable_weight * bad / good
            print_warning(
                f"All good answers together weigh {balance:.2g} times as much as all bad ones; the authors of KTO "
                f"advise 1 to 1.33: --set preference.desirable_weight={base * 7 / 6:.3g}"
            )


def _warn_of_small_steps(dataset: BlockDataset, arguments: TrainingArguments) -> None:
    """Warn where the reference point of a step is estimated from few answers."""
    rows_per_block = sum(map(len, dataset.blocks)) / 2 / max(1, len(dataset))
    blocks = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * count_processes()
    answers = rows_per_block * blocks
    if answers < _FEW_ANSWERS:
        needed = math.ceil(8 * arguments.gradient_accumulation_steps / answers)
        print_warning(
            f"A step has about {answers:.1f} answers, from which KTO's reference point is estimated: use 8 or more, "
            f"--set training.gradient_accumulation_steps={needed}"
        )
