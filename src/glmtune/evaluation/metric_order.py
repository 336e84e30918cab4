"""What the report knows of scores: their order, their direction and their kind."""

from __future__ import annotations

from collections.abc import Iterable

from glmtune.report.markup import Html, el, say
from glmtune.report.texts import TEXTS

QUALITY = (
    "bleu4_characters",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "bleu4_words",
    "exact_match",
    "tool_decision",
    "tool_name",
    "tool_arguments",
    "tool_argument_keys",
)
"""0 to 100, more is better."""
FAULTS = ("tool_parse_failure", "empty", "truncated", "repeated_tail", "repeated_4grams")
"""0 to 100, less is better."""
RATIO = "length_ratio"
"""Neither more nor less is better."""
SIGNIFICANT = 0.05


def ordered(names: Iterable[str]) -> list[str]:
    """Quality first, then faults; names the report does not know come last."""
    known = (*QUALITY, *FAULTS, RATIO)
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def direction(name: str) -> int:
    """1: more is better; -1: less is; 0: neither."""
    return -1 if name in FAULTS else int(name in QUALITY)


def title(name: str) -> Html:
    """A score's name with a line on what it says."""
    if f"score.{name}" not in TEXTS:
        return el("code", name)
    explained = say(f"score.{name}.says")
    return el("span", say(f"score.{name}"), el("small", explained), class_="score-name")
