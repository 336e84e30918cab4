"""What the steps of a training minimise."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from transformers import TrainingArguments

from glmtune.training.loss import LossSettings, step_loss
from glmtune.training.training_data import TrainingData

PAIR_METRICS = ("accuracy", "margin", "better_reward", "worse_reward", "better_logp", "worse_logp")
"""What is logged of pairs, as means: the share of pairs whose better answer has the higher reward, the difference of
the rewards, and of both sides reward and log-probability of the answer."""


class Objective(Protocol):
    """Losses of the items of a batch, whose mean over an optimiser step is minimised."""

    @property
    def needs_reference(self) -> bool:
        """Whether `compute_reference` must be called with the model before it is trained."""

    def compute_reference(self, model: nn.Module, data: TrainingData, arguments: TrainingArguments) -> None:
        """Compute what the losses need of the model as it is before training."""

    def compute_losses(self, model: nn.Module, batch: dict[str, Any], settings: LossSettings | None) -> torch.Tensor:
        """Losses (M,) of the items in fp32 or fp64; `settings` of training, None for an evaluation."""

    def count_items(self, batch: dict[str, Any]) -> torch.Tensor:
        """The number of items of a batch."""

    def find_rows(self, batch: dict[str, Any], is_bad_M: torch.Tensor) -> torch.Tensor:
        """The numbers of the rows of the items that a mask selects."""

    def pop_metrics(self, is_evaluation: bool) -> torch.Tensor | None:
        """Sums of `PAIR_METRICS` and the number of pairs since the last call, (7,); None without pairs."""


class TokenObjective:
    """Supervised training: the cross-entropy of every target."""

    needs_reference = False

    def compute_reference(self, model: nn.Module, data: TrainingData, arguments: TrainingArguments) -> None:
        """Nothing is needed."""

    def compute_losses(self, model: nn.Module, batch: dict[str, Any], settings: LossSettings | None) -> torch.Tensor:
        """Losses (N,) of the targets."""
        return step_loss(model, batch, settings=settings)

    def count_items(self, batch: dict[str, Any]) -> torch.Tensor:
        """The number of targets of a batch."""
        return torch.tensor(len(batch["targets"]))

    def find_rows(self, batch: dict[str, Any], is_bad_N: torch.Tensor) -> torch.Tensor:
        """The numbers of the rows of targets."""
        positions = batch["target_positions"][is_bad_N].cpu()
        places = torch.bucketize(positions, batch["row_lengths"].cpu().cumsum(0), right=True).unique()
        rows: torch.Tensor = batch["rows"].cpu()[places]
        return rows

    def pop_metrics(self, is_evaluation: bool) -> None:
        """There are none."""
