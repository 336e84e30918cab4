"""Scores of several models on the same rows: who is better at what, and the rows that show it."""

from __future__ import annotations

from collections.abc import Sequence

from glmtune.evaluation.eval_folder import Record
from glmtune.evaluation.results import ChangedRow, ScorePair
from glmtune.evaluation.statistics import compare_by_bootstrap

_BY = "rouge_l"
"""The score by which a row has changed."""


def select_common_rows(models: Sequence[Sequence[Record]]) -> list[list[Record]]:
    """Of each model's records those whose rows all models have, in the order of the data. Length limits may drop a row
    under one tokenizer and keep it under another."""
    common = set.intersection(*({record["row"] for record in records} for records in models))
    return [[record for record in records if record["row"] in common] for records in models]


def compare_pairs(models: Sequence[Sequence[Record]]) -> list[ScorePair]:
    """Compare every later model with the first, score by score.

    Args:
        models: from `select_common_rows`.
    """
    first, *others = models
    return [pair for b, records in enumerate(others, start=1) for pair in _compare_records(first, records, b)]


def list_changed_rows(models: Sequence[Sequence[Record]], limit: int = 20) -> list[ChangedRow]:
    """List the rows whose ROUGE-L differs most from the first model's; of equal ones, the earlier in the data.

    Args:
        models: from `select_common_rows`.
        limit: number of rows.
    """
    rows = [row for row in zip(*models, strict=True) if len({record["prediction"] for record in row}) > 1]

    def change(row: Sequence[Record]) -> float:
        first, *others = (record["scores"][_BY] for record in row)
        return -max(abs(other - first) for other in others)

    return [
        ChangedRow(
            **{key: row[0][key] for key in ("row", "where", "prompt", "reference")},
            replies=[record["prediction"] for record in row],
            scores=[record["scores"][_BY] for record in row],
        )
        for row in sorted(rows, key=change)[:limit]
    ]


def _compare_records(first: Sequence[Record], other: Sequence[Record], b: int) -> list[ScorePair]:
    scores = [(one["scores"], two["scores"]) for one, two in zip(first, other, strict=True)]
    names = dict.fromkeys(name for one, two in scores for name in one if name in two)
    result = []
    for name in names:
        # Only rows with a tool call have all scores.
        both = [(one[name], two[name]) for one, two in scores if name in one and name in two]
        difference = compare_by_bootstrap([one for one, _ in both], [two for _, two in both])
        result.append(ScorePair(0, b, name, difference))
    return result
