"""Shorten rows to the length limits: oldest turns first, then the question, then the end of the answer.

A question in a column loses its end: published trainers (THUDM/ChatGLM-6B, `ptuning/main.py`) keep the start, where the
instruction is. The last question of a conversation loses its start.

The frame around the last question, a prefix before it and the token that ends the answer always stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from glmtune.errors import DataError
from glmtune.families import EncodedSequence

Messages = list[dict[str, Any]]
Encode = Callable[[Messages], EncodedSequence]
"""Encodes messages with the family, with prefix and tools."""


@dataclass
class LengthLimits:
    """Maximum number of tokens of the prompt and of the last answer, or of both together."""

    source: int
    target: int
    together: int | None = None

    def limits_for(self, row: EncodedSequence) -> tuple[int, int]:
        """Maximum number of tokens of the prompt and the answer of a row.

        With one common limit the answer has priority, but leaves at least half of the limit to the prompt.
        """
        if self.together is None:
            return self.source, self.target
        answer = len(row.input_ids) - row.prompt_length
        source = max(self.together - answer, min(row.prompt_length, self.together // 2))
        return source, max(self.together - row.prompt_length, self.together - source)

    def fits(self, row: EncodedSequence) -> bool:
        """Whether a row is within the limits."""
        source, target = self.limits_for(row)
        return row.prompt_length <= source and len(row.input_ids) - row.prompt_length <= target

    def __str__(self) -> str:
        if self.together:
            return f"{self.together} together (data.max_length)"
        return f"{self.source} and {self.target} (data.max_source_length, data.max_target_length)"


@dataclass
class TruncatedRow:
    """A row within the limits, and what was removed."""

    row: EncodedSequence
    turns_dropped: bool = False
    prompt_cut: bool = False
    answer_cut: bool = False


def truncate_row(
    messages: Messages, row: EncodedSequence, limits: LengthLimits, encode: Encode, keep_question_start: bool = False
) -> TruncatedRow | None:
    """Shorten a row to the limits.

    Args:
        messages: of the row.
        row: over the limits.
        limits: to shorten it to.
        encode: encodes shortened messages.
        keep_question_start: whether a question is cut at its end instead of its start.

    Returns:
        None if the parts that cannot be cut (system message, tools, tool results) are over the limits.
    """
    source, target = limits.limits_for(row)
    result = TruncatedRow(row)
    if row.prompt_length > source:
        system = messages[:1] if messages[0]["role"] == "system" else []
        turns = _drop_turns(system, messages[len(system) :], source, encode)
        result.turns_dropped = len(system) + len(turns) < len(messages)
        result.row = encode([*system, *turns])
        if result.row.prompt_length > source:
            shorter = _cut_question(system, turns, source, encode, keep_question_start)
            if shorter is None:
                return None
            result.row, result.prompt_cut = shorter, True

    # With one common limit the answer gets what the shortened prompt leaves.
    target = limits.together - result.row.prompt_length if limits.together else target
    if len(result.row.input_ids) - result.row.prompt_length > target:
        end = result.row.prompt_length + target - 1
        input_ids, labels = result.row.input_ids, result.row.labels
        result.row = replace(
            result.row, input_ids=[*input_ids[:end], input_ids[-1]], labels=[*labels[:end], labels[-1]]
        )
        result.answer_cut = True
    return result


def make_length_error(row: EncodedSequence, limits: LengthLimits, tokens_before: int = 0) -> DataError:
    """The error for a row over the limits that may not be cut, with the number of tokens of turns before it."""
    answer = len(row.input_ids) - row.prompt_length
    return DataError(
        f"{row.prompt_length + tokens_before} tokens of prompt and {answer} of answer, more than {limits}.",
        "Shorten it, or set data.overlength to cut.",
    )


def _drop_turns(system: Messages, messages: Messages, limit: int, encode: Encode) -> Messages:
    """The last turns that fit, at least one. Found by bisection: long conversations have many turns."""
    starts = [i for i, message in enumerate(messages) if i == 0 or message["role"] == "user"]
    fits, fails = len(starts) - 1, 0  # numbers of dropped turns: `fits` is enough or the maximum, `fails` too few
    while fits - fails > 1:
        middle = (fits + fails) // 2
        if encode([*system, *messages[starts[middle] :]]).prompt_length <= limit:
            fits = middle
        else:
            fails = middle
    return messages[starts[fits] :]


def _cut_question(
    system: Messages, turn: Messages, limit: int, encode: Encode, keep_start: bool
) -> EncodedSequence | None:
    """The turn with its question cut as little as possible.

    Text is cut rather than ids, so that the frame around it stays intact. Found by bisection over the remaining length:
    shorter text never takes many more tokens.
    """
    question, *rest = turn
    text = question.get("content", "") if question["role"] == "user" else ""

    def encode_part(length: int) -> EncodedSequence:
        part = text[:length] if keep_start else text[len(text) - length :]
        shortened = [{**question, "content": part}] if text else [question]
        return encode([*system, *shortened, *rest])

    fits, fails = 0, len(text)
    best = encode_part(0)
    if best.prompt_length > limit:
        return None
    while fails - fits > 1:
        middle = (fits + fails) // 2
        candidate = encode_part(middle)
        if candidate.prompt_length <= limit:
            fits, best = middle, candidate
        else:
            fails = middle
    return best
