"""How well a reward model's differences say how likely an answer is the better one.

A Bradley-Terry model gives the answer with the higher reward the probability sigmoid(difference). It is calibrated if,
of all pairs to which it gives 80 %, it is right about 80 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from glmtune.html.plots import new_figure, save_figure

_EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_Z = 1.96
"""Of a 95 % interval."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs to which a model gives about the same probability.

    Attributes:
        low: smallest probability of the answer with the higher reward.
        high: largest one.
        pairs: in this bin.
        confidence: mean probability; None without pairs.
        accuracy: share of pairs whose better answer has the higher reward; a tie counts half.
    """

    low: float
    high: float
    pairs: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Quality of the rewards of pairs.

    Attributes:
        pairs: number of pairs.
        accuracy: share of pairs whose better answer has the higher reward; a tie counts half.
        accuracy_low: lower end of its 95 % interval (Wilson).
        accuracy_high: upper end.
        mean_margin: mean difference of the rewards, better minus worse.
        ece: expected calibration error, the mean distance of accuracy and confidence of the bins, weighted by pairs.
        brier: mean of (1 - probability of the better answer) squared; 0.25 is a coin.
        bins: reliability by bins of confidence.
    """

    pairs: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    mean_margin: float
    ece: float
    brier: float
    bins: list[ReliabilityBin]


def compute_calibration(margins: Sequence[float]) -> Calibration:
    """Compute accuracy and calibration.

    Args:
        margins: differences of the rewards of pairs, better minus worse; at least one.
    """
    margins_P = np.asarray(margins, dtype=np.float64)
    is_right_P = np.where(margins_P == 0, 0.5, margins_P > 0)
    confidence_P = _sigmoid(np.abs(margins_P))
    places_P = np.clip(np.digitize(confidence_P, _EDGES) - 1, 0, len(_EDGES) - 2)
    bins, ece = [], 0.0
    for place, (low, high) in enumerate(pairwise(_EDGES)):
        is_inside_P = places_P == place
        count = int(is_inside_P.sum())
        if not count:
            bins.append(ReliabilityBin(low, high, 0, None, None))
            continue
        confidence, accuracy = float(confidence_P[is_inside_P].mean()), float(is_right_P[is_inside_P].mean())
        bins.append(ReliabilityBin(low, high, count, confidence, accuracy))
        ece += count / len(margins_P) * abs(confidence - accuracy)
    accuracy = float(is_right_P.mean())
    low, high = compute_wilson_interval(accuracy, len(margins_P))
    brier = float(((1 - _sigmoid(margins_P)) ** 2).mean())
    return Calibration(len(margins_P), accuracy, low, high, float(margins_P.mean()), ece, brier, bins)


def compute_wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent cases (Wilson, 1927)."""
    centre = share + _Z**2 / (2 * count)
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def compute_auc(good: Sequence[float], bad: Sequence[float]) -> float:
    """The probability that a good answer has a higher reward than a bad one; ties count half.

    Args:
        good: rewards of good answers; at least one.
        bad: of bad answers; at least one.
    """
    values, counts = np.unique(np.concatenate([good, bad]), return_counts=True)
    ends = counts.cumsum()
    ranks = ends - (counts - 1) / 2  # of tied values, the mean
    good_ranks = ranks[np.searchsorted(values, good)]
    return float((good_ranks.sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))


def save_reliability_chart(calibration: Calibration, path: Path, title: str) -> Path:
    """Draw accuracy against confidence, and the number of pairs of each bin, as a PNG file."""
    figure = new_figure((5, 4.5))
    axes = figure.add_subplot(1, 1, 1)
    axes.plot([0.5, 1], [0.5, 1], linestyle="--", color="grey", label="calibrated")
    points: list[Any] = [(one.confidence, one.accuracy, one.pairs) for one in calibration.bins if one.pairs]
    axes.plot([point[0] for point in points], [point[1] for point in points], marker="o", label="this model")
    for confidence, accuracy, count in points:
        axes.annotate(str(count), (confidence, accuracy), (4, 6), textcoords="offset points", fontsize=8)
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(-0.03, 1.05)
    axes.grid(alpha=0.25)
    axes.set_xlabel("probability that the model gives (bins; number of pairs beside the points)", fontsize=8)
    axes.set_ylabel("share of pairs where it is right")
    axes.set_title(title, fontsize=9)
    axes.legend(loc="lower right")
    return save_figure(figure, path)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -700, 700)))
