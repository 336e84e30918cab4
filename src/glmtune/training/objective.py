"""What the steps of a training minimise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import TrainingArguments

from glmtune.errors import TrainingError
from glmtune.families import Family
from glmtune.training.loss import LossSettings, step_loss
from glmtune.training.training_data import TrainingData


class StepDataError(TrainingError):
    """The data of a step cannot be made: a reward function fails, say. The weights are those after the last step, and
    are saved before this ends the run."""


@dataclass
class ObjectiveContext:
    """What an objective may need of a run.

    Attributes:
        model: trainable, with the adapter that training starts from, before a checkpoint is loaded.
        tokenizer: of the model.
        family: its generation.
        data: rows to train on and to evaluate on.
        arguments: of the training.
        samples: a file of the run folder for samples.
    """

    model: Any
    tokenizer: Any
    family: Family
    data: TrainingData
    arguments: TrainingArguments
    samples: Path


class Objective(Protocol):
    """Losses of the items of a batch, whose mean over an optimiser step is minimised."""

    extra_updates: int
    """Optimiser updates on the data of a step before its last one."""
    stops_at_zero_loss: bool
    """Whether losses of exactly 0 mean that nothing is learnt."""
    evaluates_losses: bool
    """Whether evaluation rows have losses; otherwise `evaluate` scores them."""

    def start(self, context: ObjectiveContext) -> None:
        """Prepare what needs the trainable model, before the first step."""

    def generate_batches(self, batches: list[Any], step: int, writes_samples: bool) -> list[Any]:
        """Make the micro-batches of a step of what the data loader gave.

        Args:
            batches: from the collator.
            step: number of the step, from 1.
            writes_samples: whether it is one of which samples are written.

        Raises:
            StepDataError: they cannot be made.
        """

    def split_batch(self, batch: Any) -> list[Any]:
        """The parts of a micro-batch that are computed one after the other."""

    def evaluate(self) -> dict[str, float]:
        """Scores of the evaluation rows, the same in all processes; all must call it."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Of what `pop_metrics` counts."""

    @property
    def needs_reference(self) -> bool:
        """Whether `compute_reference` must be called with the model before it is trained."""

    def compute_reference(
        self, model: nn.Module, data: TrainingData, arguments: TrainingArguments, identity: str = ""
    ) -> None:
        """Compute what the losses need of the model as it is before training; `identity` is that of its weights, under
        which the result is kept on disk."""

    def prepare_batches(self, model: nn.Module, batches: Iterable[dict[str, Any]], is_evaluation: bool) -> None:
        """Compute what the losses of these batches share, before any of them: those of an optimiser step, or all of an
        evaluation. All processes call it."""

    def compute_losses(self, model: nn.Module, batch: dict[str, Any], settings: LossSettings | None) -> torch.Tensor:
        """Losses (M,) of the items in fp32 or fp64; `settings` of training, None for an evaluation."""

    def count_items(self, batch: dict[str, Any]) -> torch.Tensor:
        """The number of items of a batch."""

    def find_rows(self, batch: dict[str, Any], is_bad_M: torch.Tensor) -> torch.Tensor:
        """The numbers of the rows of the items that a mask selects."""

    def pop_metrics(self, is_evaluation: bool) -> torch.Tensor | None:
        """The sum of each of `metric_names` since the last call, and the number of its summands, (K, 2); None without
        metrics."""


class BatchHooks:
    """The parts of `Objective` that objectives of given rows have in common."""

    extra_updates = 0
    stops_at_zero_loss = True
    evaluates_losses = True

    def start(self, context: ObjectiveContext) -> None:
        """Nothing is needed."""

    def generate_batches(self, batches: list[Any], step: int, writes_samples: bool) -> list[Any]:
        """The batches as they are."""
        return batches

    def prepare_batches(self, model: nn.Module, batches: Iterable[dict[str, Any]], is_evaluation: bool) -> None:
        """Nothing is shared."""

    def split_batch(self, batch: Any) -> list[Any]:
        """The batch as a whole."""
        return [batch]

    def evaluate(self) -> dict[str, float]:
        """There are losses instead."""
        return {}


class TokenObjective(BatchHooks):
    """Supervised training: the cross-entropy of every target."""

    needs_reference = False
    metric_names: tuple[str, ...] = ()

    def compute_reference(
        self, model: nn.Module, data: TrainingData, arguments: TrainingArguments, identity: str = ""
    ) -> None:
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


def compute_means(names: tuple[str, ...], sums_K2: torch.Tensor) -> dict[str, float]:
    """Means of what was summed at all; `margin` is the difference of the two rewards where nothing else defines it.

    Args:
        names: of the K rows.
        sums_K2: sums, and numbers of summands.
    """
    means = {name: total / count for name, (total, count) in zip(names, sums_K2.tolist(), strict=True) if count}
    if "margin" not in names and {"better_reward", "worse_reward"} <= means.keys():
        means["margin"] = means["better_reward"] - means["worse_reward"]
    return means
