"""Conversations as ids within the length limits: the newest question and the answer's end token always stay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from glmtune.data.conversation import Conversation
from glmtune.errors import DataError
from glmtune.families import IGNORE, Encoded, Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]


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
    """Rows left out as too long."""
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
        for row in rows:
            counts.rows += 1
            counts.tokens += len(row.input_ids)
            counts.targets += len(row.labels) - row.labels.count(IGNORE)
            yield EncodedRow(row.input_ids, row.labels, row.context, counts.conversations, conversation.where)
        counts.conversations += 1


def _encode(
    conversation: Conversation, family: Family, tokenizer: Any, rules: EncodingRules, counts: Counts
) -> Iterator[Encoded]:
    if conversation.text is not None:
        yield from _encode_text(conversation.text, family, tokenizer, rules)
        return
    for messages in examples(conversation.messages, family, rules):
        row = _fit(messages, conversation.tools, family, tokenizer, rules, counts)
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
    return [with_prefix(messages[: end + 1], rules.prefix) for end in ends]


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
    for first in range(0, len(body), room):
        piece = body[first : first + room]
        labels = [IGNORE] * len(start) + piece
        yield replace(whole, input_ids=start + piece, labels=labels)


def _fit(
    messages: Messages, tools: list | None, family: Family, tokenizer: Any, rules: EncodingRules, counts: Counts
) -> Encoded | None:
    row = family.encode(messages, tokenizer, tools)
    full = len(row.input_ids)
    source, target = _limits(row, rules)
    if row.prompt_length <= source and full - row.prompt_length <= target:
        return row
    if rules.overlength == "error":
        raise DataError(f"{_sizes(row)}, more than {_allowed(rules)}.", "Shorten it, or set data.overlength to cut.")
    if rules.overlength == "drop":
        counts.rows_dropped += 1
        counts.tokens_cut += full
        return None
    if row.prompt_length > source:
        row = _fit_prompt(messages, tools, family, tokenizer, source, counts)
    # What the prompt leaves free under one common limit goes to the answer.
    target = rules.max_length - row.prompt_length if rules.max_length else target
    if len(row.input_ids) - row.prompt_length > target:
        row = _cut_answer(row, target)
        counts.answers_cut += 1
    counts.tokens_cut += full - len(row.input_ids)
    return row


def _limits(row: Encoded, rules: EncodingRules) -> tuple[int, int]:
    """Most tokens of the prompt and of the last answer. Under one common limit the answer comes first, but never
    takes so much that the question keeps less than half."""
    if rules.max_length is None:
        return rules.max_source_length, rules.max_target_length
    answer = len(row.input_ids) - row.prompt_length
    source = max(rules.max_length - answer, min(row.prompt_length, rules.max_length // 2))
    return source, max(rules.max_length - row.prompt_length, rules.max_length - source)


def _fit_prompt(
    messages: Messages, tools: list | None, family: Family, tokenizer: Any, limit: int, counts: Counts
) -> Encoded:
    """Drop the oldest turns, then the start of the newest question, until the prompt fits."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    row = None
    while (row is None or row.prompt_length > limit) and (length := _first_turn(turns)):
        turns = turns[length:]
        row = family.encode([*system, *turns], tokenizer, tools)
    counts.turns_dropped += row is not None
    if row is not None and row.prompt_length <= limit:
        return row
    counts.prompts_cut += 1
    return _cut_question(system, turns, tools, family, tokenizer, limit)


def _first_turn(turns: Messages) -> int:
    """How many messages the oldest turn has, up to the next user's; 0 when it is the only one."""
    return next((i for i, message in enumerate(turns) if i > 0 and message["role"] == "user"), 0)


def _cut_question(
    system: Messages, turn: Messages, tools: list | None, family: Family, tokenizer: Any, limit: int
) -> Encoded:
    """The turn with the start of its question cut, as little as fits.

    Cutting text rather than ids keeps the frame around it whole; a bisection over the kept length finds the border,
    since a shorter text never takes many more tokens.
    """
    question, *rest = turn
    if question["role"] != "user":
        question, rest = {"role": "user", "content": ""}, turn

    def render(kept: int) -> Encoded:
        text = question["content"][len(question["content"]) - kept :]
        return family.encode([*system, {**question, "content": text}, *rest], tokenizer, tools)

    fits, fails = 0, len(question["content"])
    least = render(0)
    if least.prompt_length > limit:
        raise DataError(
            f"what stands around the question takes {least.prompt_length} tokens, the prompt may have {limit}.",
            "Raise data.max_source_length (or data.max_length), or shorten system message and tools.",
        )
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if render(middle).prompt_length <= limit:
            fits = middle
        else:
            fails = middle
    return render(fits)


def _cut_answer(row: Encoded, target: int) -> Encoded:
    """The row with the end of its last answer cut; the end token stays."""
    keep = row.prompt_length + target - 1
    return replace(
        row,
        input_ids=[*row.input_ids[:keep], row.input_ids[-1]],
        labels=[*row.labels[:keep], row.labels[-1]],
    )


def _sizes(row: Encoded) -> str:
    return f"{row.prompt_length} tokens of prompt and {len(row.input_ids) - row.prompt_length} of answer"


def _allowed(rules: EncodingRules) -> str:
    if rules.max_length:
        return f"{rules.max_length} together (data.max_length)"
    return f"{rules.max_source_length} and {rules.max_target_length} (data.max_source_length, data.max_target_length)"
