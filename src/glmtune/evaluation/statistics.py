"""Scores of a data set: means with bootstrap intervals, and paired comparison of two sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glmtune.evaluation.metrics import EMPTY

_LEVEL = (2.5, 97.5)
"""Percentiles of a 95 % interval."""
_AT_ONCE = 2_000_000
"""Sampled rows in memory at a time."""


@dataclass(frozen=True)
class ScoreSummary:
    """A mean over `rows` rows and its 95 % interval."""

    mean: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class Summary:
    """A set's scores by name, in the order in which its rows name them."""

    rows: int
    scores: dict[str, ScoreSummary]
    empty_predictions: int


@dataclass(frozen=True)
class ScoreDifference:
    """How far `b` is above `a`, row by row: the mean difference, its 95 % interval and the two-sided p-value of "there
    is none"."""

    mean: float
    low: float
    high: float
    p: float
    wins: int
    """Rows where `b` is higher."""
    losses: int
    ties: int


def summarize_scores(rows: Sequence[Mapping[str, float]], *, resamples: int = 2000, seed: int = 0) -> Summary:
    """Means and bootstrap intervals of rows of scores.

    Args:
        rows: what `score_pair` and `score_tools` return, one dictionary per reply. A score is averaged over the rows
            that have it.
        resamples: number of bootstrap samples, with replacement, for the interval.
        seed: of these draws; the same rows and seed give the same intervals.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return Summary(len(rows), {}, 0)
    table = np.array([[row.get(name, np.nan) for name in names] for row in rows], dtype=np.float64)
    lows, highs = np.nanpercentile(_resample_means(table, resamples, seed), _LEVEL, axis=0)
    scores = {}
    for i, name in enumerate(names):
        present = table[:, i][~np.isnan(table[:, i])]
        scores[name] = _summarize_score(present, lows[i], highs[i])
    return Summary(len(rows), scores, sum(row.get(EMPTY, 0) > 0 for row in rows))


def compare_by_bootstrap(
    a: Sequence[float], b: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> ScoreDifference:
    """Compares one score of two models on the same rows.

    Args:
        a: the score per row of the first, say the base.
        b: of the second, in the same order.
        resamples: number of bootstrap samples; `p` cannot fall below 2 / (resamples + 1).
        seed: of these draws.

    Raises:
        ValueError: the lists are empty or not equally long.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"Paired scores need the same rows, at least one; got {len(a)} and {len(b)}.")
    gains = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    means = _resample_means(gains[:, None], resamples, seed)[:, 0]
    score = _summarize_score(gains, *np.percentile(means, _LEVEL))
    # One is added to either count because the rows as they are belong to the possible draws (Davison & Hinkley 1997).
    side = (min(int(np.count_nonzero(means <= 0)), int(np.count_nonzero(means >= 0))) + 1) / (resamples + 1)
    wins, losses = int(np.count_nonzero(gains > 0)), int(np.count_nonzero(gains < 0))
    return ScoreDifference(
        score.mean, score.low, score.high, min(1.0, 2 * side), wins, losses, len(gains) - wins - losses
    )


def _summarize_score(values: NDArray[np.float64], low: float, high: float) -> ScoreSummary:
    """Rounding may leave the mean of equal values a hair outside their interval, and plots refuse negative bars."""
    mean = float(values.mean())
    return ScoreSummary(mean, min(float(low), mean), max(float(high), mean), len(values))


def _resample_means(table: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Column means of `table` (rows, scores; NaN where a row lacks a score) of as many draws of its rows: (resamples,
    scores). NaN where no drawn row has the score."""
    generator = np.random.default_rng(seed)
    present = ~np.isnan(table)
    filled = np.where(present, table, 0.0)
    size = len(table)
    parts = []
    for start in range(0, resamples, max(1, _AT_ONCE // size)):
        draws = min(resamples - start, max(1, _AT_ONCE // size))
        # The counts of each row in a sample give all means by one product.
        picked = generator.integers(size, size=(draws, size)) + np.arange(draws)[:, None] * size
        counts = np.bincount(picked.ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64)
        with np.errstate(invalid="ignore"):
            parts.append((counts @ filled) / (counts @ present))
    return np.concatenate(parts)
