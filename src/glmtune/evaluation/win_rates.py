"""How often a model's replies beat the baseline's by the rewards of a reward model, as it is and at equal length.

Reward models, and people, tend to prefer longer replies. AlpacaEval 2 (arXiv 2404.04475) removes that by a logistic
regression of the wins on the difference of the lengths; its term for the difficulty of questions needs the battles of
many models, so it is left out here:

    logit P(b beats a on row i) = theta + phi * tanh((length of b's reply - length of a's reply) / s)

with lengths in characters and s their differences' standard deviation. The length-controlled win rate is
sigmoid(theta), that of replies of equal length.

Shapes: N rows, K resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glmtune.evaluation.statistics import ScoreSummary

_PENALTIES = (0.01, 1.0)
"""Of theta² / 2 and phi² / 2, so that both are finite where one model wins every row: normal priors with standard
deviations of 10 and 1."""
_STEPS = 30
_RESAMPLES = 1000
_LEVEL = (2.5, 97.5)
_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class WinRate:
    """A model `b` against a model `a`, the baseline.

    Attributes:
        a: number of the baseline.
        b: number of the model.
        wins: rows where b's reply has the higher reward.
        losses: where a's has.
        ties: equal rewards.
        rate: share of wins in percent, ties as halves.
        controlled: the same at equal length.
        length_effect: phi; above 0 where longer replies win.
        mean_lengths: characters of a reply of a and of b.
        reward_difference: mean of b's reward minus a's.
    """

    a: int
    b: int
    wins: int
    losses: int
    ties: int
    rate: ScoreSummary
    controlled: ScoreSummary
    length_effect: float
    mean_lengths: list[float]
    reward_difference: float


def compute_win_rate(
    a: int,
    b: int,
    rewards: tuple[Sequence[float], Sequence[float]],
    lengths: tuple[Sequence[int], Sequence[int]],
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> WinRate:
    """Compare two models' replies to the same rows.

    Args:
        a: number of the baseline.
        b: number of the model.
        rewards: of a's replies and of b's.
        lengths: their characters.
        resamples: bootstrap samples of the rows for the 95 % intervals.
        seed: of these draws.

    Raises:
        ValueError: no rows.
    """
    gains_N = np.asarray(rewards[1], dtype=np.float64) - np.asarray(rewards[0], dtype=np.float64)
    if not len(gains_N):
        raise ValueError("A win rate needs at least one row.")
    wins_N = np.where(gains_N > 0, 1.0, np.where(gains_N < 0, 0.0, 0.5))
    longer_N = np.asarray(lengths[1], dtype=np.float64) - np.asarray(lengths[0], dtype=np.float64)
    scale = longer_N.std()
    terms_N = np.tanh(longer_N / scale) if scale > 0 else np.zeros_like(longer_N)

    theta, phi = (float(value[0]) for value in fit_logistic(np.ones((1, len(wins_N))), wins_N, terms_N))
    generator = np.random.default_rng(seed)
    rates, controlled = [], []
    size = max(1, _AT_ONCE // len(wins_N))
    for start in range(0, resamples, size):
        draws = min(size, resamples - start)
        weights_KN = generator.multinomial(len(wins_N), np.full(len(wins_N), 1 / len(wins_N)), size=draws).astype(float)
        rates.append(weights_KN @ wins_N / len(wins_N))
        controlled.append(_sigmoid(fit_logistic(weights_KN, wins_N, terms_N)[0]))
    return WinRate(
        *(a, b),
        wins=int((gains_N > 0).sum()),
        losses=int((gains_N < 0).sum()),
        ties=int((gains_N == 0).sum()),
        rate=_summarize(float(wins_N.mean()), np.concatenate(rates), len(wins_N)),
        controlled=_summarize(float(_sigmoid(np.array(theta))), np.concatenate(controlled), len(wins_N)),
        length_effect=phi,
        mean_lengths=[float(np.mean(each)) for each in lengths],
        reward_difference=float(gains_N.mean()),
    )


def fit_logistic(
    weights_KN: NDArray[np.float64], wins_N: NDArray[np.float64], terms_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit theta and phi, (K,) each, by Newton's method to weighted rows, with the penalties of this module.

    Args:
        weights_KN: how often a row is in each sample.
        wins_N: 1, 0 or 0.5.
        terms_N: of the length.
    """
    theta_K, phi_K = np.zeros(len(weights_KN)), np.zeros(len(weights_KN))
    for _ in range(_STEPS):
        shares_KN = _sigmoid(theta_K[:, None] + phi_K[:, None] * terms_N)
        errors_KN = weights_KN * (wins_N - shares_KN)
        gradients = (
            errors_KN.sum(1) - _PENALTIES[0] * theta_K,
            (errors_KN * terms_N).sum(1) - _PENALTIES[1] * phi_K,
        )
        curvature_KN = weights_KN * shares_KN * (1 - shares_KN)
        a_K = curvature_KN.sum(1) + _PENALTIES[0]
        b_K = (curvature_KN * terms_N).sum(1)
        c_K = (curvature_KN * terms_N**2).sum(1) + _PENALTIES[1]
        determinant_K = a_K * c_K - b_K**2
        steps = (
            (c_K * gradients[0] - b_K * gradients[1]) / determinant_K,
            (a_K * gradients[1] - b_K * gradients[0]) / determinant_K,
        )
        # Where nearly all rows are won, a whole step goes too far.
        theta_K = theta_K + np.clip(steps[0], -2, 2)
        phi_K = phi_K + np.clip(steps[1], -2, 2)
        if max(np.abs(step).max() for step in steps) < 1e-10:
            break
    return theta_K, phi_K


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-values))


def _summarize(mean: float, samples_K: NDArray[np.float64], rows: int) -> ScoreSummary:
    low, high = np.percentile(samples_K, _LEVEL)
    return ScoreSummary(100 * mean, 100 * min(float(low), mean), 100 * max(float(high), mean), rows)
