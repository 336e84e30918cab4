"""Encode conversations as training rows of token ids and labels, within the length limits."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from glmtune.data.conversation import Conversation
from glmtune.data.truncation import LengthLimits, Messages, make_length_error, truncate_row
from glmtune.errors import DataError
from glmtune.families import IGNORE_INDEX, EncodedSequence, Family
from glmtune.families.family import tokenize_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of a conversation with more messages, examples are encoded without the turns that the limits remove anyway: only with
# as many of the last turns as have about twice the length of a row.
_MANY_MESSAGES = 32
_TAIL_LIMITS = 2


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
    """Rows whose last question was cut: at the end if questions are in a column, else at the start."""
    question_ends_cut: int = 0
    """Those of them that were cut at the end."""
    answers_cut: int = 0
    """Rows whose answer was cut at the end (the end token stays)."""
    rows_dropped: int = 0
    """Rows over the limits that were dropped: all with `drop`, those that cannot be cut enough with `cut`."""
    same_pairs: int = 0
    """Pairs that were dropped because the limits leave the same of both answers."""
    tokens_cut: int = 0
    """Estimated for conversations many times over the limits, of which not every row is encoded as a whole."""

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
        value: of a pair's rows, how much better the better answer is; of a row with a label, 1 if it is good, else 0.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]
    context: int
    conversation: int
    where: str
    value: float = 0.0


def encode_conversations(
    conversations: Iterable[Conversation],
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    rules: EncodingRules,
    counts: EncodingCounts,
) -> Iterator[EncodedRow]:
    """Encode conversations as they come, and update `counts`. A pair gives two rows, the better one first; two answers
    with labels that belong to one conversation, two rows that are independent of each other.

    Raises:
        DataError: a conversation does not fit the family's roles, has nothing to train on, or (with
            `overlength: error`) is too long; the message names its file and line.
    """
    for conversation in conversations:
        try:
            rows = _encode_answers(conversation, family, tokenizer, rules, counts)
        except DataError as error:
            raise DataError(f"{conversation.where}: {error.message}", error.hint) from None
        counts.conversations += 1
        for row, value in rows:
            counts.rows += 1
            counts.tokens += len(row.input_ids)
            counts.targets += len(row.labels) - row.labels.count(IGNORE_INDEX)
            yield EncodedRow(row.input_ids, row.labels, row.context, conversation.number, conversation.where, value)


def _encode_answers(
    conversation: Conversation, family: Family, tokenizer: Any, rules: EncodingRules, counts: EncodingCounts
) -> list[tuple[EncodedSequence, float]]:
    """The rows of a conversation, each with the value of `EncodedRow`."""
    worse = conversation.rejected
    if conversation.is_desirable is not None:
        if family.one_answer_per_row:
            rules = replace(rules, train_on="last")
        sides = [conversation] if worse is None else [conversation, worse]
        return [
            (row, float(bool(side.is_desirable)))
            for side in sides
            for row in _encode_conversation(side, family, tokenizer, rules, counts)
        ]
    if worse is not None:
        pair = _encode_pair(conversation, worse, family, tokenizer, rules, counts)
        return [(row, conversation.margin) for row in pair]
    return [(row, 0.0) for row in _encode_conversation(conversation, family, tokenizer, rules, counts)]


def _encode_conversation(
    conversation: Conversation, family: Family, tokenizer: Any, rules: EncodingRules, counts: EncodingCounts
) -> Iterator[EncodedSequence]:
    if conversation.text is not None:
        yield from _encode_text(conversation.text, family, tokenizer, rules)
        return
    for example in encode_examples(conversation, family, tokenizer, rules):
        row = fit_example(example, conversation, family, tokenizer, rules, counts)
        if row is not None:
            yield row


def _encode_pair(
    better: Conversation,
    worse: Conversation,
    family: Family,
    tokenizer: Any,
    rules: EncodingRules,
    counts: EncodingCounts,
) -> list[EncodedSequence]:
    """Encode both sides of a pair, with the same prompt; nothing if one of them does not fit the limits.

    With one limit for prompt and answer together, the longer answer decides how much of the prompt both keep.
    """
    if family.one_answer_per_row:
        rules = replace(rules, train_on="last")
    before = asdict(counts)

    def encode(limited: EncodingRules) -> list[list[EncodedSequence]]:
        vars(counts).update(before)
        return [list(_encode_conversation(side, family, tokenizer, limited, counts)) for side in (better, worse)]

    rows = encode(rules)
    prompts = [row.prompt_length for side in rows for row in side]
    if rules.max_length and len(set(prompts)) > 1:
        prompt = min(prompts)
        answer = rules.max_length - prompt
        rows = encode(replace(rules, max_length=None, max_source_length=prompt, max_target_length=answer))
    if any(len(side) != 1 for side in rows):
        counts.rows_dropped += sum(map(len, rows))
        return []
    ids = [list(side[0].input_ids) for side in rows]
    if ids[0] == ids[1]:
        counts.rows_dropped += 2
        counts.same_pairs += 1
        return []
    return [row for side in rows for row in side]


@dataclass
class EncodedExample:
    """A training example before truncation.

    Attributes:
        messages: that end with a trained answer.
        row: their ids and labels.
        tokens_before: estimated number of tokens of the oldest turns, if these are left out of `messages` and `row`
            because the rest is over the limits without them.
    """

    messages: Messages
    row: EncodedSequence
    tokens_before: int = 0


def encode_examples(
    conversation: Conversation, family: Family, tokenizer: PreTrainedTokenizerBase, rules: EncodingRules
) -> Iterator[EncodedExample]:
    """Encode the training examples of a conversation, before truncation.

    Where every answer is an example of its own, a conversation of n turns has n examples of up to n turns. To take time
    in proportion to its length, turns that the limits remove anyway are not encoded with each of them again.

    Raises:
        DataError: no answer is trained, or the messages do not fit the family.
    """

    def encode(messages: Messages) -> EncodedSequence:
        return family.encode(add_prefix(messages, rules.prefix), tokenizer, conversation.tools)

    messages = conversation.messages
    tails = None
    if family.one_answer_per_row and len(messages) > _MANY_MESSAGES:
        tails = _TailFinder(messages, tokenizer, encode, _TAIL_LIMITS * rules.max_row_length)
    examples = split_examples(messages, family, rules)
    following = next(examples, None)
    while following is not None:
        example, following = following, next(examples, None)
        # The last one is encoded as a whole: the family checks all messages.
        first = tails.find_start(len(example) - 1) if tails and following else 0
        if tails and first:
            system = example[:1] if example[0]["role"] == "system" else []
            tail = [*system, *example[first:]]
            row = encode(tail)
            if row.prompt_length > rules.limits.limits_for(row)[0]:
                yield EncodedExample(tail, row, tails.count_tokens(len(system), first))
                continue
        yield EncodedExample(example, encode(example))


def fit_example(
    example: EncodedExample,
    conversation: Conversation,
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    rules: EncodingRules,
    counts: EncodingCounts,
) -> EncodedSequence | None:
    """Bring an example of a conversation within the length limits, and count what is removed.

    Returns:
        The row; None if it is left out.

    Raises:
        DataError: it is over the limits, with `overlength: error`.
    """

    def encode(messages: Messages) -> EncodedSequence:
        return family.encode(add_prefix(messages, rules.prefix), tokenizer, conversation.tools)

    row, keep_start = example.row, conversation.keeps_question_start
    if rules.limits.fits(row):
        return row
    if rules.overlength == "error":
        raise make_length_error(row, rules.limits, example.tokens_before)
    truncated = None
    if rules.overlength == "cut":
        truncated = truncate_row(example.messages, row, rules.limits, encode, keep_start)
    if truncated is None:
        counts.rows_dropped += 1
        counts.tokens_cut += len(row.input_ids) + example.tokens_before
        return None
    counts.turns_dropped += truncated.turns_dropped or example.tokens_before > 0
    counts.prompts_cut += truncated.prompt_cut
    counts.question_ends_cut += truncated.prompt_cut and keep_start
    counts.answers_cut += truncated.answer_cut
    counts.tokens_cut += len(row.input_ids) - len(truncated.row.input_ids) + example.tokens_before
    return truncated.row


class _TailFinder:
    """Finds the last turns of a conversation with a given number of tokens, by the lengths of the single messages."""

    def __init__(self, messages: Messages, tokenizer: Any, encode: Callable[[Messages], EncodedSequence], size: int):
        """Tokenize the messages one by one.

        Args:
            messages: of the conversation.
            tokenizer: of the family.
            encode: encodes messages as a row.
            size: number of tokens that the last turns should have.
        """
        self.size = size
        sizes = [len(tokenize_text(tokenizer, message.get("content") or "")) for message in messages]
        self.starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
        # The text around a turn: what a row of three turns has more than one of two, apart from the contents.
        frame = 0
        if len(self.starts) > 4 and all(messages[start + 1]["role"] == "assistant" for start in self.starts[:4]):
            long, short = (encode(messages[self.starts[first] : self.starts[3] + 2]) for first in (1, 2))
            frame = len(long.input_ids) - len(short.input_ids) - sum(sizes[self.starts[1] : self.starts[2]])
        for start in self.starts:
            sizes[start] += frame
        self.ends = [0, *itertools.accumulate(sizes)]

    def find_start(self, end: int) -> int:
        """The index of the message from which on the messages before `end` have about the size; 0 if all are needed."""
        limit = self.ends[end] - self.size
        position = bisect_right(self.starts, bisect_right(self.ends, limit) - 1) - 1
        return self.starts[position] if position > 0 else 0

    def count_tokens(self, first: int, end: int) -> int:
        """About the number of tokens of the messages from `first` to `end`, without the latter."""
        return self.ends[end] - self.ends[first]


def split_examples(messages: Messages, family: Family, rules: EncodingRules) -> Iterator[Messages]:
    """Split a conversation into training examples, each of which ends with a trained answer.

    Raises:
        DataError: no answer is trained.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] in ("assistant", "tool")]
    trained = [i for i in answers if messages[i].get("loss", True)]
    if rules.train_on == "last":
        messages = [{**m, "loss": False, "observation_loss": False} if _is_trained_input(m) else m for m in messages]
    inputs = [i for i, message in enumerate(messages) if _is_trained_input(message)]
    if not trained and not inputs:
        raise DataError(
            "nothing to train on: there is no answer, or loss is false for all of them.", "Fix or remove the row."
        )
    if rules.train_on == "last":
        trained = trained[-1:]
        messages = [{**m, "loss": i in trained} if i in answers else m for i, m in enumerate(messages)]
    ends = trained if family.one_answer_per_row else trained[-1:]
    if inputs and (not ends or inputs[-1] >= ends[-1]):
        following = next((i for i in answers if i > inputs[-1]), None)
        if following is None:
            raise DataError(
                f"message {inputs[-1] + 1} has loss: true, but no answer follows it.",
                "A row ends with its last answer: add one (with loss: false), or remove the flag.",
            )
        ends = [*ends, following] if family.one_answer_per_row else [following]
    for end in ends:
        # A tool call at the end of an example is its target; its result is not part of it.
        last = {key: value for key, value in messages[end].items() if key != "observation"}
        yield [*messages[:end], last]


def _is_trained_input(message: dict[str, Any]) -> bool:
    """Whether a message that is not the assistant's, or the result of a call, is trained on."""
    if message["role"] == "tool":
        return bool(message.get("observation_loss"))
    return message["role"] != "assistant" and bool(message.get("loss"))


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
