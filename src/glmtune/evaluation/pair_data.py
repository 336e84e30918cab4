"""Pairs of answers to evaluate on, encoded as training encodes them, and replies as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from glmtune.config import DataConfig
from glmtune.data.conversation import Conversation
from glmtune.data.encoding import EncodedRow, EncodingCounts, encode_conversations
from glmtune.data.pair_checks import find_shared_start, read_answers
from glmtune.data.sources import open_sources
from glmtune.evaluation.dataset import EvalRow
from glmtune.evaluation.eval_folder import Record
from glmtune.families import IGNORE_INDEX, Family
from glmtune.models.row_layout import get_row_layout
from glmtune.training.training_data import make_encoding_rules

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EvalPair:
    """A pair of answers to the same question."""

    where: str
    prompt: list[dict[str, Any]]
    """The messages that both answers follow."""
    better: str
    worse: str
    rows: tuple[EncodedRow, EncodedRow]
    """The better and the worse answer, within the length limits."""


@dataclass(frozen=True)
class PairData:
    """The pairs of a data set.

    Attributes:
        pairs: that fit the length limits.
        dropped: number of pairs that do not fit, or are the same after the cut.
        others: number of rows that are no pairs: with one answer, or with the same answer twice.
    """

    pairs: list[EvalPair]
    dropped: int
    others: int


def read_pairs(
    path: str,
    config: DataConfig,
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int | None = None,
    seed: int = 42,
) -> PairData:
    """Read the pairs of a data set and encode them by training's own rules.

    Args:
        path: as `data.eval` names it.
        config: limits, columns and prefix.
        family: the model's generation.
        tokenizer: its tokenizer.
        limit: use only this many rows, from the first.
        seed: of sampling.

    Raises:
        DataError: a file that cannot be read, or a pair that does not fit the family.
    """
    sources = open_sources(path, config.columns, config.format, seed, "pairs")
    items = [item for source in sources for item in islice(source.scan_rows(), limit)][:limit]
    conversations = [item for item in items if isinstance(item, Conversation) and item.rejected is not None]
    rules = make_encoding_rules(config)
    pairs = []
    for conversation in conversations:
        rows = list(encode_conversations([conversation], family, tokenizer, rules, EncodingCounts()))
        if len(rows) == 2:
            prompt = conversation.messages[: find_shared_start(conversation)]
            pairs.append(EvalPair(conversation.where, prompt, *read_answers(conversation), (rows[0], rows[1])))
    return PairData(pairs, len(conversations) - len(pairs), len(items) - len(conversations))


def make_reply_rows(model: Any, rows: Sequence[EvalRow], records: Sequence[Record]) -> list[EncodedRow]:
    """Rows of prompts with the replies to them as targets, token for token as they were generated.

    Args:
        model: for the positions of its generation.
        rows: the prompts.
        records: the replies with their `ids`, of the same rows; those without a token are left out.
    """
    layout = get_row_layout(model)
    prompts = {row.row: row for row in rows}
    encoded = []
    for record in records:
        row, ids = prompts[record["row"]], list(record["ids"])
        input_ids = [*row.prompt_ids, *ids]
        labels = [*([IGNORE_INDEX] * len(row.prompt_ids)), *ids]
        if ids:
            encoded.append(EncodedRow(input_ids, labels, layout.count_context(input_ids), record["row"], row.where))
    return encoded
