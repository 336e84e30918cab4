"""The loss of the references themselves, as training's evaluation takes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from glmtune.data.batches import BlockCollator
from glmtune.data.encoding import EncodedRow
from glmtune.families import Family
from glmtune.generation.batched import run_in_batches
from glmtune.models.devices import to_double
from glmtune.models.packed_attention import set_packed_attention
from glmtune.training.loss import step_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def compute_reference_loss(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    rows: Sequence[EncodedRow],
    *,
    batch_size: int = 8,
    on_done: Callable[[int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> tuple[float, int]:
    """Mean cross-entropy in nats over all targets of all rows (NaN of none), and how many targets there are.

    Args:
        model: in eval mode, not wrapped for data parallelism.
        tokenizer: its tokenizer.
        family: its generation.
        rows: from `encode_conversations`.
        batch_size: rows in a batch; halved if memory is not sufficient.
        on_done: called with the number of rows of each finished batch.
        warn: called once if batches get smaller.

    Raises:
        ModelError: there is not even memory for one row.
    """
    set_packed_attention(model)
    collate = BlockCollator(family)

    def compute(batch: Sequence[EncodedRow]) -> tuple[int, float, int]:
        tensors = {name: value.to(model.device) for name, value in collate([[(0, row)] for row in batch]).items()}
        with torch.no_grad():
            losses_N = step_loss(model, tensors)
        return len(batch), float(to_double(losses_N).sum()), len(losses_N)

    total, targets = 0.0, 0
    by_length = sorted(rows, key=lambda row: -len(row.input_ids))
    for done, batch_sum, batch_targets in run_in_batches(by_length, batch_size, compute, warn):
        total += batch_sum
        targets += batch_targets
        if on_done:
            on_done(done)
    return (total / targets if targets else math.nan), targets
