"""Checks of pairs of answers: by themselves, against other pairs, and over all of them."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from glmtune.data.check_kinds import Problem, check_conversation, make_excerpt, read_message_text
from glmtune.data.conversation import Conversation

MIN_SIMILARITY = 0.95
"""Edit similarity from which on two answers are nearly the same."""
MAX_EDITS = 200
"""Answers that differ in more characters are not nearly the same, however long they are."""
MIN_LENGTH_SHARE = 0.65
"""Share of pairs whose better answer is the longer (or the shorter) one, from which on a model may learn length."""
_MIN_DEVIATIONS = 3.0
"""By how many standard deviations that share must differ from a half: with few pairs it may be chance."""


@dataclass
class PairLengths:
    """Lengths of the answers of pairs in characters, whatever the model."""

    pairs: int = 0
    better_longer: int = 0
    worse_longer: int = 0
    better_total: int = 0
    worse_total: int = 0

    def add_pair(self, better: int, worse: int) -> None:
        """Add the lengths of the two answers."""
        self.pairs += 1
        self.better_longer += better > worse
        self.worse_longer += worse > better
        self.better_total += better
        self.worse_total += worse

    def as_dict(self) -> dict[str, float]:
        """For JSON: numbers of pairs, the share whose better answer is longer, and mean lengths in characters."""
        count = max(1, self.pairs)
        return {
            "pairs": self.pairs,
            "better_longer": self.better_longer,
            "worse_longer": self.worse_longer,
            "same_length": self.pairs - self.better_longer - self.worse_longer,
            "better_longer_share": round(self.better_longer / count, 4),
            "better_mean": round(self.better_total / count, 1),
            "worse_mean": round(self.worse_total / count, 1),
        }

    def find_bias(self) -> Problem | None:
        """The problem that one of the answers is nearly always the longer one."""
        different = self.better_longer + self.worse_longer
        more = max(self.better_longer, self.worse_longer)
        deviations = (2 * more - different) / math.sqrt(different) if different else 0.0
        if not different or more / different < MIN_LENGTH_SHARE or deviations < _MIN_DEVIATIONS:
            return None
        side = "longer" if self.better_longer > self.worse_longer else "shorter"
        means = self.as_dict()
        message = (
            f"the better answer is the {side} one in {more:,} of {self.pairs:,} pairs ({more / self.pairs:.0%}; "
            f"{means['better_mean']:,.0f} characters against {means['worse_mean']:,.0f} on average)"
        )
        return Problem("length-bias", message, hint=f"A model may learn to answer {side}: {_LENGTH_ADVICE}")


_LENGTH_ADVICE = (
    "add pairs of the opposite kind, or use stage simpo or preference.length_normalized, which compare means per token."
)


def find_shared_start(conversation: Conversation) -> int:
    """Of a pair, the number of messages before the two answers."""
    assert conversation.rejected is not None
    both = zip(conversation.messages, conversation.rejected.messages, strict=False)
    return next((i for i, (ours, theirs) in enumerate(both) if ours != theirs), 0)


def read_answers(conversation: Conversation) -> tuple[str, str]:
    """The texts of the better and of the worse answer of a pair."""
    assert conversation.rejected is not None
    start = find_shared_start(conversation)
    sides = (conversation.messages[start:], conversation.rejected.messages[start:])
    better, worse = ("\n".join(map(read_message_text, messages)) for messages in sides)
    return better, worse


def check_pair(conversation: Conversation) -> Iterator[Problem]:
    """Problems of the worse answer, and of the two answers together."""
    worse = conversation.rejected
    assert worse is not None
    of_better = {(problem.kind, problem.message) for problem in check_conversation(conversation)}
    for problem in check_conversation(worse):
        if (problem.kind, problem.message) not in of_better:
            yield Problem(problem.kind, f"the worse answer: {problem.message}", problem.excerpt, hint=problem.hint)
    answers = read_answers(conversation)
    edits = count_edits(*answers)
    if edits is not None and all(text.strip() for text in answers):
        size = max(map(len, answers))
        message = f"the two answers differ in {edits:,} of {size:,} characters" if edits else _ONLY_SPACES
        hint = "There is little to learn from them: check that the difference is the one that is meant."
        yield Problem("similar-answers", message, make_excerpt(answers[0]), hint=hint)


_ONLY_SPACES = "the two answers differ in spaces, or in upper and lower case, only"


def count_edits(first: str, second: str) -> int | None:
    """Count the characters to insert, remove or replace between two texts that are nearly the same.

    White space, upper and lower case and forms of the same character (NFKC) are not told apart.

    Returns:
        The edit distance (Levenshtein), if it is at most `1 - MIN_SIMILARITY` of the longer text and `MAX_EDITS`; else
        None.
    """
    first, second = (" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in (first, second))
    size = max(len(first), len(second))
    limit = min(int((1 - MIN_SIMILARITY) * size + 1e-9), MAX_EDITS)
    # Cheap lower bounds first: nearly all pairs stop here.
    if abs(len(first) - len(second)) > limit:
        return None
    counts = Counter(first)
    counts.subtract(second)
    if max(sum(n for n in counts.values() if n > 0), -sum(n for n in counts.values() if n < 0)) > limit:
        return None
    return _compute_bounded_distance(first, second, limit)


def _compute_bounded_distance(first: str, second: str, limit: int) -> int | None:
    """The edit distance if it is at most `limit`: of each diagonal the furthest place that e edits reach (Ukkonen 1985,
    Algorithms for approximate string matching), in time of about limit * (limit + length)."""
    goal = len(second) - len(first)
    reached: dict[int, int] = {}

    def slide(place: int, diagonal: int) -> int:
        while place < len(first) and place + diagonal < len(second) and first[place] == second[place + diagonal]:
            place += 1
        return place

    for edits in range(limit + 1):
        before, reached = reached, {}
        for diagonal in range(-edits, edits + 1):
            if edits == 0:
                place = 0
            else:
                # Replace a character, insert one of the second text, or remove one of the first.
                steps = (before.get(diagonal, -2) + 1, before.get(diagonal - 1, -2), before.get(diagonal + 1, -2) + 1)
                place = max(steps)
            place = min(place, len(first), len(second) - diagonal)
            if place >= 0:
                reached[diagonal] = slide(place, diagonal)
        if reached.get(goal, -1) >= len(first):
            return edits
    return None


def describe_pair_cut(better: Any, worse: Any, rows: list[Any]) -> str:
    """What the length limits do to a pair.

    Args:
        better: `RowLength` of the better answer before the cut.
        worse: of the worse one.
        rows: what is left: two encoded rows, or none.
    """
    if not rows:
        return "the pair is dropped"
    cut = []
    starts = [next(i for i, label in enumerate(row.labels) if label >= 0) for row in rows]
    if starts[0] < better.prompt:
        cut.append("the prompt is cut")
    for name, length, row, start in zip(("better", "worse"), (better, worse), rows, starts, strict=True):
        if len(row.input_ids) - start < length.answer:
            cut.append(f"the end of the {name} answer is cut")
    return ", ".join(cut) or "it is cut"
