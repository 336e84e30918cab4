"""How far a tuned model is from its base, token by token, on texts that the base wrote.

The distributions of two models over a vocabulary of 65,024 and more would fill gigabytes. The base's final hidden
states and its head give the same distributions in a sixteenth of the memory or less, so these are stored, and neither
two models nor complete distributions are ever in memory.

Shapes: N targets, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from glmtune.data.batches import BlockCollator
from glmtune.data.encoding import EncodedRow
from glmtune.errors import ModelError
from glmtune.families import IGNORE_INDEX, Family
from glmtune.generation.batched import run_in_batches
from glmtune.models.devices import to_double
from glmtune.models.packed_attention import set_packed_attention
from glmtune.training.loss import step_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 256
"""Targets whose distributions are in memory at a time."""


@dataclass(frozen=True)
class Trace:
    """What a model thought at every target of some rows."""

    rows: Sequence[EncodedRow]
    hidden: list[torch.Tensor]
    """Of each row (N, H), on the CPU."""
    head: nn.Module
    loss: float
    """Mean cross-entropy per target in nats, NaN of none."""


@dataclass(frozen=True)
class Divergence:
    """A model against the one that was traced."""

    kl: float
    """Mean KL(traced || this) per target in nats, NaN of none."""
    loss: float


def trace_tokens(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    rows: Sequence[EncodedRow],
    *,
    batch_size: int = 8,
    on_done: Callable[[int], None] | None = None,
) -> Trace:
    """Run the rows through a model and store its hidden states.

    Args:
        model: in eval mode, without adapter.
        tokenizer: its tokenizer.
        family: its generation.
        rows: encoded rows.
        batch_size: rows in a batch; halved if memory is not sufficient.
        on_done: called with the number of rows of each finished batch.

    Raises:
        ModelError: there is not even memory for one row.
    """
    hidden: list[Any] = [None] * len(rows)
    total = 0.0
    for batch, hidden_NH, losses_N in _iterate_batches(model, tokenizer, family, rows, batch_size, on_done):
        total += float(to_double(losses_N).sum())
        for i, part in zip(batch, hidden_NH.cpu().split([count_targets(rows[i]) for i in batch]), strict=True):
            hidden[i] = part.clone()
    return Trace(rows, hidden, model.get_output_embeddings(), _compute_mean(total, rows))


def measure_divergence(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    before: Trace,
    *,
    batch_size: int = 8,
    on_done: Callable[[int], None] | None = None,
) -> Divergence:
    """Compare a model with the one that was traced, on the same rows. Arguments are those of `trace`.

    Raises:
        ModelError: the two have vocabularies of different sizes, or there is not even memory for one row.
    """
    head = model.get_output_embeddings()
    kl, total = 0.0, 0.0
    for batch, hidden_NH, losses_N in _iterate_batches(model, tokenizer, family, before.rows, batch_size, on_done):
        total += float(to_double(losses_N).sum())
        theirs_NH = torch.cat([before.hidden[i] for i in batch])
        kl += _sum_kl(before.head, theirs_NH, head, hidden_NH)
    return Divergence(_compute_mean(kl, before.rows), _compute_mean(total, before.rows))


def count_targets(row: EncodedRow) -> int:
    """How many tokens of a row are predicted. Nothing predicts the first."""
    return sum(label != IGNORE_INDEX for label in list(row.labels)[1:])


@torch.no_grad()
def _sum_kl(head: nn.Module, before_NH: torch.Tensor, tuned_head: nn.Module, tuned_NH: torch.Tensor) -> float:
    """KL(before || tuned), summed over all targets."""
    total = 0.0
    for one_NH, other_NH in zip(before_NH.split(_AT_ONCE), tuned_NH.split(_AT_ONCE), strict=True):
        before_NV = head(one_NH.to(other_NH.device)).float()
        tuned_NV = tuned_head(other_NH).float()
        if before_NV.shape[-1] > tuned_NV.shape[-1]:
            raise ModelError(
                f"The models' vocabularies differ in size ({before_NV.shape[-1]} and {tuned_NV.shape[-1]}).",
                "Only models that were tuned from one base can be compared token by token.",
            )
        before_NV, tuned_NV = before_NV.log_softmax(-1), tuned_NV.log_softmax(-1)
        tuned_NV = tuned_NV[:, : before_NV.shape[-1]]  # the base gives tokens that were added no probability
        kl_N = F.kl_div(tuned_NV, before_NV, reduction="none", log_target=True).sum(-1)
        total += float(to_double(kl_N.clamp(min=0)).sum())  # rounding makes a hair less than 0 of none
    return total


def _iterate_batches(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    rows: Sequence[EncodedRow],
    batch_size: int,
    on_done: Callable[[int], None] | None,
) -> Iterator[tuple[Sequence[int], torch.Tensor, torch.Tensor]]:
    """Batches of row numbers, longest first, with the final hidden states (N, H) and the losses (N,) of their
    targets."""
    set_packed_attention(model)
    collate = BlockCollator(family)
    head = model.get_output_embeddings()

    def compute(batch: Sequence[int]) -> tuple[Sequence[int], torch.Tensor, torch.Tensor]:
        tensors = {name: value.to(model.device) for name, value in collate([[(i, rows[i])] for i in batch]).items()}
        with torch.no_grad(), _capture_inputs(head) as seen:
            losses_N = step_loss(model, tensors)
        return batch, seen[0].flatten(0, 1)[tensors["target_positions"]], losses_N

    order = sorted((i for i, row in enumerate(rows) if count_targets(row)), key=lambda i: -len(rows[i].input_ids))
    for done in run_in_batches(order, batch_size, compute):
        yield done
        if on_done:
            on_done(len(done[0]))


@contextmanager
def _capture_inputs(head: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What goes into the head while the context lasts."""
    seen: list[torch.Tensor] = []
    handle = head.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _compute_mean(total: float, rows: Sequence[EncodedRow]) -> float:
    count = sum(count_targets(row) for row in rows)
    return total / count if count else math.nan
