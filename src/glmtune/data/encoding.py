"""Conversations as ids within the length limits: the newest question and the answer's end token always stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from glmtune.data.sources import Conversation
from glmtune.errors import DataError
from glmtune.families import IGNORE, Encoded, Family, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Cuts:
    """What the length limits took away."""

    rows: int = 0
    turns_dropped: int = 0
    """Rows that lost old turns."""
    prompts_cut: int = 0
    """Rows whose newest question lost its start."""
    answers_cut: int = 0
    """Rows whose answer lost its end (the end token stays)."""
    tokens_cut: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class EncodedRow:
    """A training row and where it came from."""

    input_ids: list[int]
    labels: list[int]
    where: str


@dataclass
class Limits:
    """Longest prompt and longest answer, in tokens."""

    source: int
    target: int


def encode_conversations(
    conversations: Iterable[Conversation],
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    limits: Limits,
) -> tuple[list[EncodedRow], Cuts]:
    """Encode rows one by one, cutting what is too long and counting it.

    Raises:
        DataError: a conversation does not fit the family's roles, or its prompt's frame alone exceeds the limit.
    """
    cuts = Cuts()
    rows = []
    for conversation in conversations:
        try:
            encoded = _encode(conversation, family, tokenizer, limits, cuts)
        except DataError as error:
            if error.message.startswith(conversation.where):
                raise
            raise DataError(f"{conversation.where}: {error.message}", error.hint) from None
        rows.append(EncodedRow(encoded.input_ids, encoded.labels, conversation.where))
        cuts.rows += 1
    return rows, cuts


def _encode(conversation: Conversation, family: Family, tokenizer: Any, limits: Limits, cuts: Cuts) -> Encoded:
    *context, answer = conversation.messages
    prompt = _fit_prompt(context, conversation.tools, family, tokenizer, limits.source, cuts)
    target = family.encode_answer(answer, tokenizer)
    if len(target) > limits.target:
        cuts.answers_cut += 1
        cuts.tokens_cut += len(target) - limits.target
        target = [*target[: limits.target - 1], target[-1]]
    return Encoded(prompt + target, [IGNORE] * len(prompt) + target)


def _fit_prompt(
    messages: list[dict[str, Any]],
    tools: list | None,
    family: Family,
    tokenizer: Any,
    limit: int,
    cuts: Cuts,
) -> list[int]:
    ids = family.encode_prompt(messages, tokenizer, tools)
    if len(ids) <= limit:
        return ids
    full = len(ids)
    system = [m for m in messages[:1] if m["role"] == "system"]
    turns = messages[len(system) :]
    dropped = False
    while len(turns) > 1 and len(ids) > limit:
        turns = turns[_first_turn(turns) :]
        ids = family.encode_prompt([*system, *turns], tokenizer, tools)
        dropped = True
    cuts.turns_dropped += dropped
    if len(ids) > limit:
        ids = _cut_question(system, turns[-1], tools, family, tokenizer, limit)
        cuts.prompts_cut += 1
    cuts.tokens_cut += full - len(ids)
    return ids


def _first_turn(turns: list[dict[str, Any]]) -> int:
    """How many messages the oldest turn has: up to the next user message."""
    later = [i for i, message in enumerate(turns) if i > 0 and message["role"] == "user"]
    return later[0] if later else len(turns) - 1


def _cut_question(
    system: list[dict[str, Any]],
    question: Message,
    tools: list | None,
    family: Family,
    tokenizer: Any,
    limit: int,
) -> list[int]:
    """The prompt with the start of its question cut, as little as fits.

    Cutting text rather than ids keeps the frame around it whole; a bisection over the kept length finds the border,
    since a shorter text never takes many more tokens.
    """

    def render(kept: int) -> list[int]:
        text = question["content"][len(question["content"]) - kept :]
        return family.encode_prompt([*system, {**question, "content": text}], tokenizer, tools)

    fits, fails = 0, len(question["content"])
    if len(render(0)) > limit:
        raise DataError(
            f"the prompt's frame alone takes {len(render(0))} tokens, the limit is {limit}.",
            "Raise data.max_source_length.",
        )
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if len(render(middle)) <= limit:
            fits = middle
        else:
            fails = middle
    return render(fits)
