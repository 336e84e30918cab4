"""Reward functions for `stage: grpo`: glmtune train --stage grpo --set reward=rewards.py:match_reference ...

Each gets lists with an entry per answer, by keyword: `prompts` (lists of messages), `completions` (texts),
`completion_ids` (lists of token ids), `reference` (the row's own answer, or None) and every column of the rows. It
returns a number per answer; None where it does not apply. Names that a function does not need go to `**columns`.
"""

from __future__ import annotations

import re


def match_reference(completions, reference, **columns):
    """1 if the last number of an answer is that of the reference (GSM8K and the like), else 0."""
    scores = []
    for text, expected in zip(completions, reference, strict=True):
        given, wanted = (re.findall(r"-?\d+(?:\.\d+)?", str(each).replace(",", "")) for each in (text, expected))
        scores.append(float(bool(given) and bool(wanted) and float(given[-1]) == float(wanted[-1])) if wanted else None)
    return scores


def prefer_length(completions, **columns):
    """0 for answers of 20 characters, and less the further their length is from that."""
    return [-abs(len(text) - 20) / 20 for text in completions]


def avoid_repetition(completions, **columns):
    """The share of different pairs of characters in an answer."""
    pairs = [[text[i : i + 2] for i in range(len(text) - 1)] for text in completions]
    return [len(set(each)) / len(each) if each else 0.0 for each in pairs]
