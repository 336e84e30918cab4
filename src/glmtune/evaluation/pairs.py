"""Scores of several models on the same rows: who is better at what, and the rows that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from glmtune.evaluation.eval_folder import Record
from glmtune.evaluation.statistics import compare_by_bootstrap

_BY = "rouge_l"
"""The score by which a row has changed."""


def select_common_rows(models: Sequence[Sequence[Record]]) -> list[list[Record]]:
    """Of each model's records those whose rows all models have, in the order of the data. Length limits may drop a row
    under one tokenizer and keep it under another."""
    common = set.intersection(*({record["row"] for record in records} for records in models))
    return [[record for record in records if record["row"] in common] for records in models]


def compare_pairs(models: Sequence[Sequence[Record]]) -> list[dict[str, Any]]:
    """Every later model against the first, score by score: `a`, `b`, `score` and `difference` (b above a).

    Args:
        models: from `on_common_rows`.
    """
    first, *others = models
    return [pair for b, records in enumerate(others, start=1) for pair in _compare_records(first, records, b)]


def list_changed_rows(models: Sequence[Sequence[Record]], most: int = 20) -> list[dict[str, Any]]:
    """The rows whose ROUGE-L differs most from the first model's; of equal ones, the earlier in the data.

    Args:
        models: from `on_common_rows`.
        most: so many.
    """
    rows = [row for row in zip(*models, strict=True) if len({record["prediction"] for record in row}) > 1]

    def change(row: Sequence[Record]) -> float:
        first, *others = (record["scores"][_BY] for record in row)
        return -max(abs(other - first) for other in others)

    return [
        {
            **{key: row[0][key] for key in ("row", "where", "prompt", "reference")},
            "replies": [record["prediction"] for record in row],
            "scores": [record["scores"][_BY] for record in row],
        }
        for row in sorted(rows, key=change)[:most]
    ]


def _compare_records(first: Sequence[Record], other: Sequence[Record], b: int) -> list[dict[str, Any]]:
    scores = [(one["scores"], two["scores"]) for one, two in zip(first, other, strict=True)]
    names = dict.fromkeys(name for one, two in scores for name in one if name in two)
    found = []
    for name in names:
        # Some scores only rows have where a tool is called.
        both = [(one[name], two[name]) for one, two in scores if name in one and name in two]
        difference = compare_by_bootstrap([one for one, _ in both], [two for _, two in both])
        found.append({"a": 0, "b": b, "score": name, "difference": asdict(difference)})
    return found
