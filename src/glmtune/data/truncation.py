"""Rows within the length limits: old turns go first, then the start of the newest question, then the answer's end.

The newest question, the frame around it, a prefix in front of it and the token that ends the answer always stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from glmtune.errors import DataError
from glmtune.families import Encoded

Messages = list[dict[str, Any]]
Render = Callable[[Messages], Encoded]
"""Encodes messages as the family does, prefix and tools included."""


@dataclass
class Limits:
    """Most tokens of the prompt and of the last answer, or of both together."""

    source: int
    target: int
    together: int | None = None

    def of(self, row: Encoded) -> tuple[int, int]:
        """Most tokens of this row's prompt and answer.

        Under one common limit the answer comes first, but never takes so much that the prompt keeps less than half.
        """
        if self.together is None:
            return self.source, self.target
        answer = len(row.input_ids) - row.prompt_length
        source = max(self.together - answer, min(row.prompt_length, self.together // 2))
        return source, max(self.together - row.prompt_length, self.together - source)

    def hold(self, row: Encoded) -> bool:
        """Whether a row is short enough as it is."""
        source, target = self.of(row)
        return row.prompt_length <= source and len(row.input_ids) - row.prompt_length <= target

    def __str__(self) -> str:
        if self.together:
            return f"{self.together} together (data.max_length)"
        return f"{self.source} and {self.target} (data.max_source_length, data.max_target_length)"


@dataclass
class Cut:
    """A row that was made to fit, and what it lost."""

    row: Encoded
    turns_dropped: bool = False
    prompt_cut: bool = False
    answer_cut: bool = False


def cut(messages: Messages, row: Encoded, limits: Limits, render: Render) -> Cut | None:
    """Make a row fit.

    Args:
        messages: what `row` was rendered from.
        row: too long.
        limits: what it has to keep to.
        render: encodes shortened messages.

    Returns:
        None when what has to stay is too long by itself: system message, tools, tool results.
    """
    source, target = limits.of(row)
    result = Cut(row)
    if row.prompt_length > source:
        system = messages[:1] if messages[0]["role"] == "system" else []
        turns = _drop_turns(system, messages[len(system) :], source, render)
        result.turns_dropped = len(system) + len(turns) < len(messages)
        result.row = render([*system, *turns])
        if result.row.prompt_length > source:
            shorter = _cut_question(system, turns, source, render)
            if shorter is None:
                return None
            result.row, result.prompt_cut = shorter, True
    # What the prompt leaves free under one common limit goes to the answer.
    target = limits.together - result.row.prompt_length if limits.together else target
    if len(result.row.input_ids) - result.row.prompt_length > target:
        result.row, result.answer_cut = _cut_answer(result.row, target), True
    return result


def too_long(row: Encoded, limits: Limits) -> DataError:
    """The refusal of a row that may not be cut."""
    answer = len(row.input_ids) - row.prompt_length
    return DataError(
        f"{row.prompt_length} tokens of prompt and {answer} of answer, more than {limits}.",
        "Shorten it, or set data.overlength to cut.",
    )


def _drop_turns(system: Messages, messages: Messages, limit: int, render: Render) -> Messages:
    """The newest turns that fit, the last one in any case; found by bisection, for a long talk has many turns."""
    starts = [i for i, message in enumerate(messages) if i == 0 or message["role"] == "user"]
    fits, fails = len(starts) - 1, 0  # dropping `fails` turns is too few, dropping `fits` is as many as may go
    while fits - fails > 1:
        middle = (fits + fails) // 2
        if render([*system, *messages[starts[middle] :]]).prompt_length <= limit:
            fits = middle
        else:
            fails = middle
    return messages[starts[fits] :]


def _cut_question(system: Messages, turn: Messages, limit: int, render: Render) -> Encoded | None:
    """The turn with the start of its question cut, as little as fits.

    Cutting text rather than ids keeps the frame around it whole; a bisection over the kept length finds the border,
    since a shorter text never takes many more tokens.
    """
    question, *rest = turn
    text = question.get("content", "") if question["role"] == "user" else ""

    def with_last(kept: int) -> Encoded:
        shortened = [{**question, "content": text[len(text) - kept :]}] if text else [question]
        return render([*system, *shortened, *rest])

    fits, fails = 0, len(text)
    best = with_last(0)
    if best.prompt_length > limit:
        return None
    while fails - fits > 1:
        middle = (fits + fails) // 2
        candidate = with_last(middle)
        if candidate.prompt_length <= limit:
            fits, best = middle, candidate
        else:
            fails = middle
    return best


def _cut_answer(row: Encoded, target: int) -> Encoded:
    """The row with the end of its last answer cut; the end token stays."""
    keep = row.prompt_length + target - 1
    return replace(
        row,
        input_ids=[*row.input_ids[:keep], row.input_ids[-1]],
        labels=[*row.labels[:keep], row.labels[-1]],
    )
