"""The order of metrics in tables, and whether more of them is better."""

from __future__ import annotations

from collections.abc import Iterable

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


def sort_metrics(names: Iterable[str]) -> list[str]:
    """Quality first, then faults; unknown names last."""
    order = (*QUALITY, *FAULTS, RATIO)
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def find_direction(name: str) -> int:
    """1: more is better; -1: less is; 0: neither."""
    return -1 if name in FAULTS else int(name in QUALITY)
