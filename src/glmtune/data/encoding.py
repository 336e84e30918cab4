"""Conversations as rows of ids: what is learnt of them, and what the length limits took away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from glmtune.data.conversation import Conversation
from glmtune.data.truncation import Limits, Messages, Render, cut, too_long
from glmtune.errors import DataError
from glmtune.families import IGNORE, Encoded, Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodingRules:
    """What decides the ids of a row, besides the tokenizer."""

    max_source_length: int
    max_target_length: int
    max_length: int | None = None
    """One limit for both together, in place of the two."""
    overlength: str = "cut"
    """`cut`, `drop` or `error`."""
    train_on: str = "all"
    """`all` answers or the `last` only."""
    prefix: str = ""
    """Text in front of the first question."""

    @property
    def limits(self) -> Limits:
        """The length limits."""
        return Limits(self.max_source_length, self.max_target_length, self.max_length)

    @property
    def longest(self) -> int:
        """No row has more tokens."""
        return self.max_length or self.max_source_length + self.max_target_length


@dataclass
class Counts:
    """What was encoded, and what the length limits took away."""

    conversations: int = 0
    rows: int = 0
    tokens: int = 0
    targets: int = 0
    turns_dropped: int = 0
    """Rows that lost old turns."""
    prompts_cut: int = 0
    """Rows whose newest question lost its start."""
    answers_cut: int = 0
    """Rows whose answer lost its end (the end token stays)."""
    rows_dropped: int = 0
    """Rows left out as too long: all of them under `drop`, those that no cutting makes fit under `cut`."""
    tokens_cut: int = 0

    @property
    def over(self) -> int:
        """Rows that the limits touched, at least."""
        return max(self.turns_dropped, self.prompts_cut, self.answers_cut) + self.rows_dropped

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class EncodedRow:
    """A training row: `input_ids` and `labels` (T,), and where it came from."""

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
    counts: Counts,
) -> Iterator[EncodedRow]:
    """Encode conversations as they come; `counts` is kept up to date.

    Raises:
        DataError: a conversation does not fit the family's roles, has nothing to learn, or (with `overlength: error`)
            is too long; the message names its file and line.
    """
    for conversation in conversations:
        try:
            rows = list(_encode(conversation, family, tokenizer, rules, counts))
        except DataError as error:
            raise DataError(f"{conversation.where}: {error.message}", error.hint) from None
        counts.conversations += 1
        for row in rows:
            counts.rows += 1
            counts.tokens += len(row.input_ids)
            counts.targets += len(row.labels) - row.labels.count(IGNORE)
            yield EncodedRow(row.input_ids, row.labels, row.context, conversation.number, conversation.where)


def _encode(
    conversation: Conversation, family: Family, tokenizer: Any, rules: EncodingRules, counts: Counts
) -> Iterator[Encoded]:
    if conversation.text is not None:
        yield from _encode_text(conversation.text, family, tokenizer, rules)
        return

    def render(messages: Messages) -> Encoded:
        return family.encode(with_prefix(messages, rules.prefix), tokenizer, conversation.tools)

    for messages in examples(conversation.messages, family, rules):
        row = _fit(messages, render, rules, counts)
        if row is not None:
            yield row


def examples(messages: Messages, family: Family, rules: EncodingRules) -> list[Messages]:
    """The rows of a conversation, each ending with an answer that is trained.

    Raises:
        DataError: no answer is to be learnt.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] in ("assistant", "tool")]
    trained = [i for i in answers if messages[i].get("loss", True)]
    if not trained:
        raise DataError("nothing to learn here: no answer, or loss is false for every one.", "Mend or remove the row.")
    if rules.train_on == "last":
        trained = trained[-1:]
        messages = [{**m, "loss": i in trained} if i in answers else m for i, m in enumerate(messages)]
    ends = trained if family.one_answer_per_row else trained[-1:]
    return [[*messages[:end], _without_result(messages[end])] for end in ends]


def _without_result(message: dict[str, Any]) -> dict[str, Any]:
    """A call that ends a row is what is learnt; its result would only be read by nobody."""
    return {key: value for key, value in message.items() if key != "observation"}


def with_prefix(messages: Messages, prefix: str) -> Messages:
    """Messages with `prefix` in front of the first question."""
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if not prefix or first is None:
        return messages
    question = {**messages[first], "content": prefix + messages[first]["content"]}
    return [*messages[:first], question, *messages[first + 1 :]]


def _encode_text(text: str, family: Family, tokenizer: Any, rules: EncodingRules) -> Iterator[Encoded]:
    """Plain text in pieces that fit; none of it is cut away."""
    whole = family.encode_text(text, tokenizer)
    start, body = whole.input_ids[: whole.prompt_length], whole.input_ids[whole.prompt_length :]
    room = rules.longest - len(start)
    pieces = -(-len(body) // room)
    size = -(-len(body) // pieces)  # of one length, so that no piece is an end token alone
    for first in range(0, len(body), size):
        piece = body[first : first + size]
        yield replace(whole, input_ids=start + piece, labels=[IGNORE] * len(start) + piece)


def _fit(messages: Messages, render: Render, rules: EncodingRules, counts: Counts) -> Encoded | None:
    row = render(messages)
    if rules.limits.hold(row):
        return row
    if rules.overlength == "error":
        raise too_long(row, rules.limits)
    shorter = cut(messages, row, rules.limits, render) if rules.overlength == "cut" else None
    if shorter is None:
        counts.rows_dropped += 1
        counts.tokens_cut += len(row.input_ids)
        return None
    counts.turns_dropped += shorter.turns_dropped
    counts.prompts_cut += shorter.prompt_cut
    counts.answers_cut += shorter.answer_cut
    counts.tokens_cut += len(row.input_ids) - len(shorter.row.input_ids)
    return shorter.row
