"""Rows to score with a reward model: pairs, answers with a label, or plain answers, as the file has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from glmtune.config import DataConfig
from glmtune.data.conversation import Conversation, InvalidRow
from glmtune.data.encoding import EncodedRow, EncodingCounts, encode_conversations
from glmtune.data.formats import Preference
from glmtune.data.sources import DataSource, open_sources, sample_sources
from glmtune.errors import DataError
from glmtune.evaluation.dataset import hash_rows, list_notes, require_plain_rows
from glmtune.families import Family
from glmtune.training.training_data import make_encoding_rules

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KINDS: tuple[tuple[Preference, str], ...] = (("pairs", "no-pair"), ("labels", "no-label"))
"""Ways to read rows, and the kind of the invalid row where a file has no such rows."""


@dataclass(frozen=True)
class RewardData:
    """Rows to score.

    Attributes:
        kind: `pairs`, `labels` or `rows`.
        conversations: by number; of pairs, the better answer with the worse one as `rejected`.
        encoded: rows to score; of a pair the better one and then the worse one.
        digest: of the content.
        counts: what the length limits removed.
        notes: what the user should know of the data.
    """

    kind: str
    conversations: list[Conversation]
    encoded: list[EncodedRow]
    digest: str
    counts: EncodingCounts
    notes: list[str]


def read_reward_data(
    path: str, config: DataConfig, family: Family, tokenizer: PreTrainedTokenizerBase, limit: int | None, seed: int
) -> RewardData:
    """Read rows and encode them as in training; of rows with one answer, the last answer is scored.

    Args:
        path: as `data.eval` names it.
        config: limits, columns and prefix.
        family: the model's generation.
        tokenizer: its tokenizer.
        limit: use only this many rows, from the first.
        seed: of sampling, if the data set uses a part of its rows.

    Raises:
        DataError: a file that cannot be read, a row that does not fit the family, or no row within the limits.
    """
    require_plain_rows(path)
    preference, sources = _open_sources(path, config, seed)
    conversations = list(islice(sample_sources(sources), limit))
    sides = [side for one in conversations for side in (one, one.rejected) if side is not None]
    if preference == "labels":  # a pair is two answers with a label
        conversations = [replace(side, rejected=None) for side in sides]
    for number, conversation in enumerate(conversations):
        conversation.number = number
    rules, counts = make_encoding_rules(config), EncodingCounts()
    if preference == "refuse":
        rules = replace(rules, train_on="last")
    encoded = list(encode_conversations(conversations, family, tokenizer, rules, counts))
    if not encoded:
        raise DataError(
            f"{path}: no row is left, all {counts.rows_dropped} are too long.",
            "Raise the limits: --set data.max_length=2048",
        )
    kind = "rows" if preference == "refuse" else preference
    return RewardData(kind, conversations, encoded, hash_rows(sources), counts, list(list_notes(sources)))


def describe_answer(conversation: Conversation) -> tuple[str, str]:
    """The last question and the text after it."""
    messages: Sequence[dict[str, Any]] = conversation.messages
    if conversation.text is not None:
        return "", conversation.text
    start = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    question = str(messages[start].get("content") or "") if start >= 0 else ""
    return question, "\n".join(str(message.get("content") or "") for message in messages[start + 1 :])


def _open_sources(path: str, config: DataConfig, seed: int) -> tuple[Preference, list[DataSource]]:
    """Open a file in the way that its first row can be read."""
    for preference, missing in _KINDS:
        sources = open_sources(path, config.columns, config.format, seed, preference)
        rows = sources[0].scan_rows()
        first = next((row for row in rows if not (isinstance(row, InvalidRow) and row.is_skipped)), None)
        if not (isinstance(first, InvalidRow) and first.kind == missing):
            return preference, sources
    return "refuse", open_sources(path, config.columns, config.format, seed)
