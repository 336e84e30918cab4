"""What the objectives of preference tuning share: counting their items, and sums for their metrics.

Shapes: R rows of a batch, P items (pairs or labelled answers), K metrics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from glmtune.training.objective import BatchHooks
from glmtune.training.training_data import TrainingData


class JudgedRows(BatchHooks):
    """The part of an `Objective` whose items are `rows_per_item` consecutive rows of a batch."""

    rows_per_item = 1
    metric_names: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._sums: dict[bool, torch.Tensor] = {}  # of the metrics and their numbers, (K, 2), by is_evaluation

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the model as it was before training."""
        return False

    def compute_reference(
        self, model: nn.Module, data: TrainingData, arguments: TrainingArguments, identity: str = ""
    ) -> None:
        """Nothing is needed."""

    def find_rows(self, batch: dict[str, Any], is_bad_P: torch.Tensor) -> torch.Tensor:
        """The numbers of the first rows of the items that a mask selects."""
        rows_P: torch.Tensor = batch["rows"].cpu()[:: self.rows_per_item]
        return rows_P[rows_P >= 0][is_bad_P.cpu()]

    def count_items(self, batch: dict[str, Any]) -> torch.Tensor:
        """The number of items of a batch, without those of idle blocks."""
        count: torch.Tensor = (batch["rows"][:: self.rows_per_item] >= 0).sum()
        return count

    def add_metrics(
        self, values_KP: torch.Tensor, is_evaluation: bool, is_counted_KP: torch.Tensor | None = None
    ) -> None:
        """Add values of `metric_names`.

        Args:
            values_KP: of every item.
            is_evaluation: whether the items are evaluated, not trained on.
            is_counted_KP: the values that a metric is a mean of; all when None.
        """
        values_KP = values_KP.detach().double()
        is_counted_KP = torch.ones_like(values_KP) if is_counted_KP is None else is_counted_KP.double()
        sums_K2 = torch.stack([(values_KP * is_counted_KP).sum(1), is_counted_KP.sum(1)], dim=1)
        before = self._sums.get(is_evaluation)
        self._sums[is_evaluation] = sums_K2 if before is None else before + sums_K2

    def pop_metrics(self, is_evaluation: bool) -> torch.Tensor:
        """See `Objective.pop_metrics`."""
        none = torch.zeros(len(self.metric_names), 2, dtype=torch.float64)
        return self._sums.pop(is_evaluation, none)


class PairedRows(JudgedRows):
    """Items are pairs: the better row and then the worse one."""

    rows_per_item = 2


def find_pairs(batch: dict[str, Any]) -> torch.Tensor:
    """The numbers (P,) of the pairs in a batch, on the CPU, without those of idle blocks."""
    return (batch["rows"].cpu()[::2] >= 0).nonzero()[:, 0]
