"""The scores of one reply against its reference.

Scores are on 0 to 100 (shares in percent), but for `length_ratio`. A score that a row cannot have is left out of its
dictionary; `summary.summarise` counts rows per score.
"""

from __future__ import annotations

from collections.abc import Iterable

from glmtune.evaluation.overlap import compute_overlap
from glmtune.evaluation.repetition import compute_distinct, compute_repeated_share, has_repeated_tail

EMPTY = "empty"
"""The flag, 0 or 100, of a prediction without a character to read."""


def score_pair(prediction: str, reference: str, *, truncated: bool = False) -> dict[str, float]:
    """All scores of one prediction.

    Args:
        prediction: what the model wrote, special tokens left out.
        reference: what it should have written.
        truncated: whether the reply was cut at the longest length allowed instead of ending by itself.

    Returns:
        `bleu4_characters`, `rouge_1`, `rouge_2`, `rouge_l` (as ChatGLM's published tables) and `bleu4_words`;
        `exact_match` (whitespace around the texts does not count); `length_ratio`, characters of the prediction per
        character of the reference, left out for an empty reference; the flags, 0 or 100, `empty`, `truncated` and
        `repeated_tail` (ends in a loop); `repeated_4grams`, the percentage of 4-word runs that stood before.
    """
    predicted, expected = prediction.strip(), reference.strip()
    scores = compute_overlap(prediction, reference)
    scores["exact_match"] = 100.0 * (predicted == expected)
    if expected:
        scores["length_ratio"] = len(predicted) / len(expected)
    scores[EMPTY] = 100.0 * (not predicted)
    scores["truncated"] = 100.0 * truncated
    scores["repeated_tail"] = 100.0 * has_repeated_tail(predicted)
    scores["repeated_4grams"] = 100 * compute_repeated_share(predicted)
    return scores


def measure_variety(predictions: Iterable[str]) -> dict[str, float]:
    """`distinct_1` and `distinct_2`: the percentage of different characters and pairs of characters among all that the
    predictions hold. It falls with the number of predictions: compare sets of the same size."""
    predictions = list(predictions)
    return {f"distinct_{size}": 100 * compute_distinct(predictions, size) for size in (1, 2)}
