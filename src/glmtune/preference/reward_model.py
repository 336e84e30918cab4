"""Rewards of answers by a trained reward model (`stage: rm`).

rewards = load_reward_model("runs/rm").score_rows([[{"role": "user", ...}, {"role": "assistant", ...}], ...])
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from glmtune.data.batches import BlockCollator
from glmtune.data.conversation import Conversation
from glmtune.data.encoding import EncodedRow, add_prefix
from glmtune.families import IGNORE_INDEX, EncodedSequence, Family, Message
from glmtune.generation.batched import run_in_batches
from glmtune.methods.tuned_model import load_with_adapter, resolve_target
from glmtune.methods.value_head import attach_value_head, find_language_model
from glmtune.methods.value_head_file import read_value_head
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.packed_attention import set_packed_attention
from glmtune.models.row_layout import get_row_layout
from glmtune.models.tokenizers import load_tokenizer
from glmtune.training.row_scores import compute_row_scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_SIZE = 8
"""Rows that are scored at a time."""

RewardRow = Conversation | EncodedSequence | EncodedRow | Sequence[Message] | Sequence[int]
"""A conversation that ends with the answer to score: with its tools, encoded, as messages, or as token ids."""


@dataclass
class RewardModel:
    """A reward model, ready to score.

    Attributes:
        model: with a value head, in evaluation mode.
        tokenizer: of its base.
        family: its generation.
        prefix: what its run put in front of every first question.
        folder: that holds its value head.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    family: Family
    prefix: str
    folder: Path

    def score_rows(
        self,
        rows: Sequence[RewardRow],
        batch_size: int = BATCH_SIZE,
        on_done: Callable[[int], None] | None = None,
    ) -> list[float]:
        """Compute the reward of the last answer of each row.

        Args:
            rows: each ends with an answer: a list of messages, a `Conversation`, or token ids, with the end token that
                training puts after an answer. Rows may be of different kinds. Without limit of length.
            batch_size: rows at a time; fewer after a lack of memory.
            on_done: called with the number of rows of each batch.

        Returns:
            Rewards in the order of the rows. Their zero has no meaning; differences between answers to the same
            question do.

        Raises:
            DataError: messages that do not end with an answer, or do not fit the generation.
            ModelError: one row alone does not fit into memory.
        """
        encoded = [self._encode_row(row, number) for number, row in enumerate(rows)]
        rewards = [0.0] * len(encoded)
        # Longest first: a lack of memory shows at once, and rows of similar length share a batch.
        order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number].input_ids))
        collate = BlockCollator(self.family)
        device = find_language_model(self.model).device

        def compute(numbers: Sequence[int]) -> tuple[Sequence[int], list[float]]:
            batch = collate([[(number, encoded[number])] for number in numbers]).to(device)
            with torch.no_grad():
                return numbers, compute_row_scores(self.model, batch).tolist()

        for numbers, values in run_in_batches(order, batch_size, compute):
            for number, value in zip(numbers, values, strict=True):
                rewards[number] = value
            if on_done:
                on_done(len(numbers))
        return rewards

    def _encode_row(self, row: RewardRow, number: int) -> EncodedRow:
        if isinstance(row, EncodedRow):
            return row
        if isinstance(row, EncodedSequence):
            return EncodedRow(row.input_ids, row.labels, row.context, number, "")
        if len(row) and isinstance(row[0], int) if not isinstance(row, Conversation) else False:
            ids: list[int] = list(row)  # type: ignore[arg-type]
            context = get_row_layout(find_language_model(self.model)).count_context(ids)
            return EncodedRow(ids, [IGNORE_INDEX] * len(ids), context, number, "")
        is_conversation = isinstance(row, Conversation)
        messages: Any = row.messages if is_conversation else list(row)  # type: ignore[union-attr,arg-type]
        tools = row.tools if is_conversation else None  # type: ignore[union-attr]
        encoded = self.family.encode(add_prefix(messages, self.prefix), self.tokenizer, tools)
        return EncodedRow(encoded.input_ids, encoded.labels, encoded.context, number, "")


def load_reward_model(
    path: str | os.PathLike[str],
    *,
    base: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantization: str | None = None,
    family: str | None = None,
    hub: str = "huggingface",
) -> RewardModel:
    """Load a reward model.

    Args:
        path: a run of stage rm, or the folder of its adapter or model.
        base: of the adapter, if it is no longer where the adapter was trained.
        dtype: precision of the layers; the checkpoint's own when None. The value head is in fp32.
        device: a GPU if there is one when None.
        quantization: of the base; as the run had it when None.
        family: the generation, for folders that do not name it.
        hub: source of a hub id: `huggingface` or `modelscope`.

    Raises:
        ModelError: there is no value head, or the base cannot be loaded.
        RunError: the run is unfinished, or its base gone or another one.
    """
    target = resolve_target(path, base=base, family=family, hub=hub)
    checkpoint = inspect_checkpoint(target.base, family=target.family, hub=target.hub)
    folder = target.adapter or checkpoint.folder
    weight_1H = read_value_head(folder)
    tokenizer = load_tokenizer(checkpoint.folder, family=checkpoint.family.name, adapter=target.adapter)
    model: Any = load_with_adapter(
        checkpoint,
        target.adapter,
        dtype=dtype,
        device=device,
        quantization=quantization or target.quantization,
        double_quantization=target.double_quantization,
        is_reward_model=True,
    )
    language_model = find_language_model(model)
    set_packed_attention(language_model)
    head = nn.Linear(weight_1H.shape[1], 1, bias=False, device=language_model.device)
    head.weight.data.copy_(weight_1H)
    attach_value_head(language_model, head.requires_grad_(False))
    return RewardModel(model.eval(), tokenizer, checkpoint.family, target.prefix, folder)
