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
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from glmtune.data.batches import BlockCollator
from glmtune.data.conversation import Conversation
from glmtune.data.encoding import EncodedRow, add_prefix
from glmtune.errors import ModelError
from glmtune.families import IGNORE_INDEX, EncodedSequence, Family, Message, detect_family, get_family
from glmtune.generation.batched import run_in_batches
from glmtune.methods.tuned_model import load_with_adapter, resolve_target
from glmtune.methods.value_head import attach_value_head, find_language_model
from glmtune.methods.value_head_file import read_value_head
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.devices import parse_device
from glmtune.models.loading import parse_dtype
from glmtune.models.packed_attention import set_packed_attention
from glmtune.models.row_layout import get_row_layout
from glmtune.models.tokenizers import load_tokenizer
from glmtune.training.row_scores import compute_row_scores
from glmtune.utils.file_access import require_readable_folder
from glmtune.utils.io import find_json_object

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
        tools = None
        if isinstance(row, Conversation):
            items: list[Any] = row.messages
            tools = row.tools
        else:
            items = list(row)
        if items and isinstance(items[0], int):
            context = get_row_layout(find_language_model(self.model)).count_context(items)
            return EncodedRow(items, [IGNORE_INDEX] * len(items), context, number, "")
        encoded = self.family.encode(add_prefix(items, self.prefix), self.tokenizer, tools)
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
        path: a run of stage rm, the folder of its adapter or model, or a folder of transformers' sequence
            classification with one label (an exported reward model).
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
    if is_exported_reward_model(Path(path)):
        return _load_sequence_classification(Path(path), dtype, device, family)
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


def is_exported_reward_model(folder: Path) -> bool:
    """Whether a folder is one of transformers' sequence classification."""
    config = find_json_object(folder / "config.json") or {}
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def _load_sequence_classification(
    folder: Path, dtype: str | torch.dtype | None, device: str | torch.device | None, family: str | None
) -> RewardModel:
    """Load an exported reward model: its layers, as those of a language model whose head is never computed."""
    precision: Any = parse_dtype(dtype) or "auto"
    target = parse_device(device)
    require_readable_folder(folder)
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=precision, device_map={"": target})
    if loaded.num_labels != 1:
        raise ModelError(f"{folder}: a classification with {loaded.num_labels} labels.", "A reward model has one.")
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(loaded.config)
    head = loaded.score.float().requires_grad_(False)
    setattr(model, model.base_model_prefix, loaded.base_model)
    model.set_output_embeddings(head)
    set_packed_attention(model)
    attach_value_head(model, head)
    known = get_family(family) if family else detect_family(folder)
    return RewardModel(model.eval(), load_tokenizer(folder, family=known.name), known, "", folder)
