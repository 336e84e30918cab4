"""Encode conversations as training rows of token ids and labels, within the length limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from glmtune.data.conversation import Conversation
from glmtune.data.truncation import LengthLimits, Messages, make_length_error, truncate_row
from glmtune.errors import DataError
from glmtune.families import IGNORE_INDEX, EncodedSequence, Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodingRules:
    """Settings that affect the ids of a row. The names of the fields are part of the keys of encoded caches."""

    max_source_length: int
    max_target_length: int
    max_length: int | None = None
    """One limit for both together, instead of the two."""
    overlength: str = "cut"
    """`cut`, `drop` or `error`."""
    train_on: str = "all"
    """`all` answers or the `last` only."""
    prefix: str = ""
    """Text before the first question."""

    @property
    def limits(self) -> LengthLimits:
        """The length limits."""
        return LengthLimits(self.max_source_length, self.max_target_length, self.max_length)

    @property
    def max_row_length(self) -> int:
        """Maximum number of tokens of a row."""
        return self.max_length or self.max_source_length + self.max_target_length


@dataclass
class EncodingCounts:
    """Counts of encoded rows, and of what the length limits removed. The names of the fields are keys on disk."""

    conversations: int = 0
    rows: int = 0
    tokens: int = 0
    targets: int = 0
    turns_dropped: int = 0
    """Rows without their oldest turns."""
    prompts_cut: int = 0
    """Rows whose last question was cut at the start."""
    answers_cut: int = 0
    """Rows whose answer was cut at the end (the end token stays)."""
    rows_dropped: int = 0
    """Rows over the limits that were dropped: all with `drop`, those that cannot be cut enough with `cut`."""
    tokens_cut: int = 0

    @property
    def rows_over_limits(self) -> int:
        """Lower bound of the number of rows over the limits."""
        return max(self.turns_dropped, self.prompts_cut, self.answers_cut) + self.rows_dropped

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class EncodedRow:
    """A training row.

    Attributes:
        input_ids: (T,).
        labels: (T,).
        context: number of first tokens with bidirectional attention (ChatGLM-6B).
        conversation: number of the conversation that it comes from.
        where: `file:line` of that conversation.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]
    context: int
    conversation: int
    where: str


def encode_conversations(
    conversations: Iterable[Conversation],
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    rules: EncodingRules,
    counts: EncodingCounts,
) -> Iterator[EncodedRow]:
    """Encode conversations as they come, and update `counts`.

    Raises:
        DataError: a conversation does not fit the family's roles, has nothing to train on, or (with
            `overlength: error`) is too long; the message names its file and line.
    """
    for conversation in conversations:
        try:
            rows = list(_encode_conversation(conversation, family, tokenizer, rules, counts))
        except DataError as error:
            raise DataError(f"{conversation.where}: {error.message}", error.hint) from None
        counts.conversations += 1
        for row in rows:
            counts.rows += 1
            counts.tokens += len(row.input_ids)
            counts.targets += len(row.labels) - row.labels.count(IGNORE_INDEX)
            yield EncodedRow(row.input_ids, row.labels, row.context, conversation.number, conversation.where)


def _encode_conversation(
    conversation: Conversation, family: Family, tokenizer: Any, rules: EncodingRules, counts: EncodingCounts
) -> Iterator[EncodedSequence]:
    if conversation.text is not None:
        yield from _encode_text(conversation.text, family, tokenizer, rules)
        return

    def encode(messages: Messages) -> EncodedSequence:
        return family.encode(add_prefix(messages, rules.prefix), tokenizer, conversation.tools)

    for messages in split_examples(conversation.messages, family, rules):
        row = encode(messages)
        if rules.limits.fits(row):
            yield row
            continue
        if rules.overlength == "error":
            raise make_length_error(row, rules.limits)
        truncated = truncate_row(messages, row, rules.limits, encode) if rules.overlength == "cut" else None
        if truncated is None:
            counts.rows_dropped += 1
            counts.tokens_cut += len(row.input_ids)
            continue
        counts.turns_dropped += truncated.turns_dropped
        counts.prompts_cut += truncated.prompt_cut
        counts.answers_cut += truncated.answer_cut
        counts.tokens_cut += len(row.input_ids) - len(truncated.row.input_ids)
        yield truncated.row


def split_examples(messages: Messages, family: Family, rules: EncodingRules) -> list[Messages]:
    """Split a conversation into training examples, each of which ends with a trained answer.

    Raises:
        DataError: no answer is trained.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] in ("assistant", "tool")]
    trained = [i for i in answers if messages[i].get("loss", True)]
    if not trained:
        raise DataError(
            "nothing to train on: there is no answer, or loss is false for all of them.", "Fix or remove the row."
        )
    if rules.train_on == "last":
        trained = trained[-1:]
        messages = [{**m, "loss": i in trained} if i in answers else m for i, m in enumerate(messages)]
    ends = trained if family.one_answer_per_row else trained[-1:]
    examples = []
    for end in ends:
        # A tool call at the end of an example is its target; its result is not part of it.
        last = {key: value for key, value in messages[end].items() if key != "observation"}
        examples.append([*messages[:end], last])
    return examples


def add_prefix(messages: Messages, prefix: str) -> Messages:
    """Return the messages with `prefix` before the first question."""
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if not prefix or first is None:
        return messages
    question = {**messages[first], "content": prefix + messages[first]["content"]}
    return [*messages[:first], question, *messages[first + 1 :]]


def _encode_text(text: str, family: Family, tokenizer: Any, rules: EncodingRules) -> Iterator[EncodedSequence]:
    """Encode plain text in pieces that fit the limits; nothing is cut."""
    row = family.encode_text(text, tokenizer)
    start, body = row.input_ids[: row.prompt_length], row.input_ids[row.prompt_length :]
    max_size = rules.max_row_length - len(start)
    pieces = -(-len(body) // max_size)
    size = -(-len(body) // pieces)  # equal pieces, so that none is just the end token
    for first in range(0, len(body), size):
        piece = body[first : first + size]
        yield replace(row, input_ids=start + piece, labels=[IGNORE_INDEX] * len(start) + piece)
