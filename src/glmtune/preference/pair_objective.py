"""What a step of preference tuning minimises, on packed rows: of each pair the better row and then the worse one.

Shapes: N targets of a batch, R rows, P = R / 2 pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.data.batches import BlockCollator, BlockDataset
from glmtune.preference.losses import AnswerScores, compute_pair_losses
from glmtune.training.distributed import count_processes
from glmtune.training.loss import LossSettings, step_loss
from glmtune.training.objective import PAIR_METRICS, BatchHooks
from glmtune.training.training_data import TrainingData
from glmtune.utils.console import show_status


class PreferenceObjective(BatchHooks):
    """The loss of pairs; implements `glmtune.training.objective.Objective`.

    Args:
        config: of the run; its stage is not `sft`.
    """

    metric_names: tuple[str, ...] = PAIR_METRICS

    def __init__(self, config: RunConfig):
        self._stage, self._options = config.stage, config.preference
        self._sums: dict[bool, torch.Tensor] = {}  # of PAIR_METRICS and the number of pairs, by is_evaluation
        self._references: dict[bool, torch.Tensor] = {}

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the model as it was before training."""
        return self._stage == "dpo"

    def compute_reference(self, model: nn.Module, data: TrainingData, arguments: TrainingArguments) -> None:
        """Compute the log-probability of every answer under the model as it is now.

        Args:
            model: the reference: the base, with the adapter that training starts from if there is one.
            data: rows to train on and to evaluate on.
            arguments: of the training, for device and precision.
        """
        for is_evaluation, dataset in ((False, data.train), (True, data.eval)):
            if dataset is not None:
                table_R = compute_answer_logps(model, dataset, data.collate, arguments)
                self._references[is_evaluation] = table_R

    def compute_losses(self, model: nn.Module, batch: dict[str, Any], settings: LossSettings | None) -> torch.Tensor:
        """Losses (P,) in fp64, and sums for the metrics. Idle rows have no part in either.

        Args:
            model: in training or evaluation mode.
            batch: from `BlockCollator`, whose rows are pairs.
            settings: of training; None for an evaluation.
        """
        losses_N = step_loss(model, batch, settings=settings)
        sums_R, lengths_R = _sum_by_row(-losses_N, batch)
        # On the CPU, as the numbers of the rows are: what is chosen there is sent to the device without waiting for it.
        numbers_R = batch["rows"].cpu()
        places_P = (numbers_R[::2] >= 0).nonzero()[:, 0]
        if not len(places_P):
            return losses_N  # an idle block has no target
        table = self._references[settings is None] if self.needs_reference else None

        def select_side(start: int) -> AnswerScores:
            places = 2 * places_P + start
            reference_P = None if table is None else table[numbers_R[places]].to(sums_R.device)
            places = places.to(sums_R.device)
            return AnswerScores(sums_R[places], lengths_R[places], reference_P)

        better, worse = select_side(0), select_side(1)
        result = compute_pair_losses(self._stage, better, worse, self._options)
        better_P, worse_P = result.better_rewards_P, result.worse_rewards_P
        values = [(better_P > worse_P).float(), better_P - worse_P, better_P, worse_P, better.sums_P, worse.sums_P]
        sums = torch.stack([value.detach().sum() for value in (*values, torch.ones_like(better_P))])
        before = self._sums.get(settings is None)
        self._sums[settings is None] = sums if before is None else before + sums
        return result.losses_P

    def find_rows(self, batch: dict[str, Any], is_bad_P: torch.Tensor) -> torch.Tensor:
        """The numbers of the better rows of the pairs that a mask selects."""
        rows_P: torch.Tensor = batch["rows"].cpu()[::2]
        return rows_P[rows_P >= 0][is_bad_P.cpu()]

    def count_items(self, batch: dict[str, Any]) -> torch.Tensor:
        """The number of pairs of a batch, without those of idle blocks."""
        count: torch.Tensor = (batch["rows"][::2] >= 0).sum()
        return count

    def pop_metrics(self, is_evaluation: bool) -> torch.Tensor | None:
        """Sums of `PAIR_METRICS` and the number of pairs since the last call, (2, 6)."""
        none = torch.zeros(len(PAIR_METRICS) + 1, dtype=torch.float64)
        *sums, count = self._sums.pop(is_evaluation, none)
        return torch.stack([torch.stack(sums), count.expand(len(sums))])


@torch.no_grad()
def compute_answer_logps(
    model: nn.Module, dataset: BlockDataset, collate: BlockCollator, arguments: TrainingArguments
) -> torch.Tensor:
    """Compute the log-probability of the answer of every row, without dropout.

    Args:
        model: any that `step_loss` takes.
        dataset: blocks of rows; not every row of its store has to be in one.
        collate: makes batches.
        arguments: of the training, for device, precision and batch size.

    Returns:
        (rows of the store,) in fp64 on the CPU; 0 where a row is in no block.
    """
    table_R = torch.zeros(len(dataset.rows), dtype=torch.float64)
    device, size = arguments.device, arguments.per_device_eval_batch_size
    dtype = torch.float16 if arguments.fp16 else torch.bfloat16
    starts = range(arguments.process_index * size, len(dataset), size * count_processes())
    was_training = model.training
    model.eval()
    with show_status("Reference log-probabilities") as status:
        for start in starts:
            status.update(f"Reference log-probabilities: {start:,} of {len(dataset):,} blocks")
            blocks = [dataset[index] for index in range(start, min(start + size, len(dataset)))]
            batch = collate(blocks).to(device)
            with torch.autocast(device.type, dtype, enabled=arguments.fp16 or arguments.bf16):
                losses_N = step_loss(model, batch)
            table_R[batch["rows"]] = _sum_by_row(-losses_N, batch)[0].cpu()
    model.train(was_training)
    if count_processes() > 1:  # every process has computed the rows of its own batches
        shared_R = table_R.to(device)
        torch.distributed.all_reduce(shared_R)
        table_R = shared_R.cpu()
    return table_R


def _sum_by_row(values_N: torch.Tensor, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the targets' values and numbers of targets of each row, (R,) and (R,) in fp64: an answer's
    log-probability is in the hundreds, and differences of two are in the tenths."""
    ends_R = batch["row_lengths"].to(values_N.device).cumsum(0)
    rows_N = torch.bucketize(batch["target_positions"], ends_R, right=True)
    values_N = values_N.double()
    sums_R = values_N.new_zeros(len(ends_R)).index_add(0, rows_N, values_N)
    counts_R = values_N.new_zeros(len(ends_R)).index_add(0, rows_N, torch.ones_like(values_N))
    return sums_R, counts_R
