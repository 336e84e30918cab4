"""Evaluation data: every trained turn as a prompt with its reference, and the rows of the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.config import DataConfig
from glmtune.data.conversation import PREFERENCE_HINT, Conversation
from glmtune.data.encoding import EncodedRow, EncodingCounts, EncodingRules, add_prefix, encode_conversations
from glmtune.data.files import is_encoded_folder
from glmtune.data.formats import Preference
from glmtune.data.sources import DataSource, open_sources, sample_sources
from glmtune.errors import DataError
from glmtune.evaluation.scoring import read_reference
from glmtune.families import IGNORE_INDEX, Family, ToolCall
from glmtune.training.training_data import make_encoding_rules
from glmtune.utils.console import count_noun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EvalRow:
    """A turn to be answered. `row` counts the turns of the data from 0."""

    row: int
    where: str
    prompt: list[dict[str, Any]]
    """All messages before the answer, with the data's own answers; the length limits cut `prompt_ids` only."""
    tools: list[Any] | None
    reference: str
    """The answer as training sees it: cut by the length limits, and in the tokenizer's own spelling. ChatGLM-6B's turns
    a full-width comma into an ASCII one, and a reply can only have that."""
    calls: list[ToolCall]
    """The calls in the reference."""
    prompt_ids: list[int]


@dataclass(frozen=True)
class EvalData:
    """Data to evaluate on, rendered for one family and tokenizer."""

    path: str
    digest: str
    """Of the content; the file's place is no part of it."""
    rows: list[EvalRow]
    encoded: list[EncodedRow]
    """The same conversations as training would see them, for the loss."""
    rules: EncodingRules
    counts: EncodingCounts
    """What the length limits took from the rows."""
    notes: list[str]
    """What the user should know of the data."""


def read_eval_data(
    path: str,
    config: DataConfig,
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int | None = None,
    seed: int = 42,
) -> EvalData:
    """Read a data set and render its prompts by training's own rules.

    Args:
        path: as `data.eval` names it.
        config: limits, columns, prefix, and which answers count.
        family: the model's generation.
        tokenizer: its tokenizer.
        limit: use only this many conversations, from the first.
        seed: of sampling, if the data set uses a part of its rows.

    Raises:
        DataError: a file that cannot be read, a row that does not fit the family, or nothing to compare replies with.
    """
    require_plain_rows(path)
    # Replies are compared with the better answers, whatever was trained on.
    preference: Preference = "refuse" if config.preference == "refuse" else "chosen"
    try:
        sources = open_sources(path, config.columns, config.format, seed, preference)
        conversations = list(islice(sample_sources(sources), limit))
    except DataError as error:
        if error.hint != PREFERENCE_HINT:
            raise
        hint = "To compare replies with the better answers, and both answers: --set data.preference=pairs"
        raise DataError(f"{error.message.partition('; stage')[0]}: it has two answers.", hint) from None
    rules = make_encoding_rules(config)
    encoded = list(encode_conversations(conversations, family, tokenizer, rules, EncodingCounts()))
    counts = EncodingCounts()
    rows = list(_make_rows(conversations, family, tokenizer, rules, counts))
    if not any(row.reference for row in rows):
        raise _explain_no_rows(path, conversations, counts)
    return EvalData(path, hash_rows(sources), rows, encoded, rules, counts, list(list_notes(sources)))


def _make_rows(
    conversations: Sequence[Conversation],
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    rules: EncodingRules,
    counts: EncodingCounts,
) -> Iterator[EvalRow]:
    """The turns that fit, each truncated as training would if it were the only one trained on."""
    turns = [turn for conversation in conversations for turn in _list_turns(conversation, rules)]
    for number, turn in enumerate(turns):
        turn.number = number
    for row in encode_conversations(turns, family, tokenizer, replace(rules, train_on="last"), counts):
        turn = turns[row.conversation]
        *before, answer = turn.messages
        start = next(place for place, label in enumerate(row.labels) if label != IGNORE_INDEX)
        reference, calls = read_reference(list(row.input_ids[start:]), tokenizer, family)
        if answer["role"] == "tool":  # complete, even if the limits truncate its text
            calls = [ToolCall(answer["name"], answer.get("parameters") or {})]
        yield EvalRow(
            row.conversation,
            row.where,
            add_prefix(before, rules.prefix),
            turn.tools,
            reference,
            calls,
            list(row.input_ids[:start]),
        )


def _list_turns(conversation: Conversation, rules: EncodingRules) -> Iterator[Conversation]:
    """A conversation up to each of its trained answers, the answer last; plain text has none."""
    messages = conversation.messages
    trained = [i for i, m in enumerate(messages) if m["role"] in ("assistant", "tool") and m.get("loss", True)]
    for end in trained[-1:] if rules.train_on == "last" else trained:
        # What is known of a call's result comes after it.
        answer = {key: value for key, value in messages[end].items() if key != "observation"}
        yield Conversation([*messages[:end], answer], conversation.where, conversation.tools)


def _explain_no_rows(path: str, conversations: Sequence[Conversation], counts: EncodingCounts) -> DataError:
    if counts.rows_dropped:
        return DataError(
            f"{path}: no row is left, all {counts.rows_dropped} are too long.",
            "Raise the limits: --set data.max_source_length=2048",
        )
    if any(conversation.text is not None for conversation in conversations):
        return DataError(f"{path}: plain text, without answers to compare with.", "Give questions with their answers.")
    return DataError(f"{path}: no answers to compare with, all of them are empty.", "Fill in the answers.")


def require_plain_rows(path: str) -> None:
    """Require that rows are not encoded yet.

    Raises:
        DataError: the folder is one of encoded rows, which have no texts.
    """
    if is_encoded_folder(Path(path)):
        raise DataError(f"{path}: contains encoded rows.", "Give the file that they were made from.")


def hash_rows(sources: list[DataSource]) -> str:
    """A hash of the content of sources; the place of their files is no part of it."""
    return "-".join(source.compute_digest()[:16] for source in sources)


def list_notes(sources: list[DataSource]) -> Iterator[str]:
    """What the user should know of the data: formats, what was not read, and skipped lines."""
    for source in sources:
        yield f"{source.name}: {source.format}"
        yield from (f"{source.name}: {note}" for note in source.describe_rows())
        yield from source.notes
        if source.invalid_line_count:
            first = source.invalid_lines[0]
            yield f"{source.name}: {count_noun(source.invalid_line_count, 'invalid line')} skipped; the first: {first}"
