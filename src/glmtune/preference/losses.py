"""Losses of pairs, from the log-probabilities of their answers.

Shapes: P pairs.

Sources: DPO (arXiv 2305.18290, equation 7), its label smoothing (conservative DPO, ericmitchell.ai/cdpo.pdf), IPO
(arXiv 2310.12036, equation 17), hinge (SLiC-HF, arXiv 2305.10425), RPO (arXiv 2404.19733), ORPO (arXiv 2403.07691),
SimPO (arXiv 2405.14734).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from glmtune.config import PreferenceConfig


@dataclass
class AnswerScores:
    """One side of the pairs.

    Attributes:
        sums_P: log-probability of each answer.
        lengths_P: its tokens.
        reference_P: its log-probability under the reference model; None for losses without one.
    """

    sums_P: torch.Tensor
    lengths_P: torch.Tensor
    reference_P: torch.Tensor | None = None

    @property
    def means_P(self) -> torch.Tensor:
        """Log-probability per token."""
        return self.sums_P / self.lengths_P


@dataclass
class PairLosses:
    """Losses and implicit rewards of pairs.

    Attributes:
        losses_P: to minimise.
        better_rewards_P: of the better answers, without gradient.
        worse_rewards_P: of the worse answers, without gradient.
    """

    losses_P: torch.Tensor
    better_rewards_P: torch.Tensor
    worse_rewards_P: torch.Tensor


def compute_pair_losses(stage: str, better: AnswerScores, worse: AnswerScores, options: PreferenceConfig) -> PairLosses:
    """Compute the loss of every pair.

    Args:
        stage: `dpo`, `orpo` or `simpo`.
        better: the preferred answers.
        worse: the others.
        options: of the losses.

    Raises:
        ValueError: an unknown stage.
    """
    beta = options.beta
    if stage == "dpo":
        losses_P, rewards = _compute_dpo_losses(better, worse, options, beta)
    elif stage == "orpo":
        difference_P = _compute_log_odds(better.means_P) - _compute_log_odds(worse.means_P)
        losses_P = -better.means_P - beta * F.logsigmoid(difference_P)
        rewards = [beta * side.means_P for side in (better, worse)]
    elif stage == "simpo":
        rewards = [beta * side.means_P for side in (better, worse)]
        losses_P = -F.logsigmoid(rewards[0] - rewards[1] - options.margin)
    else:
        raise ValueError(f"no preference loss for stage {stage!r}")
    if options.sft_weight:
        losses_P = losses_P - options.sft_weight * better.means_P
    return PairLosses(losses_P, rewards[0].detach(), rewards[1].detach())


def _compute_dpo_losses(
    better: AnswerScores, worse: AnswerScores, options: PreferenceConfig, beta: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The losses (P,) of DPO and its variants, and the rewards of both sides."""
    rewards = []
    for side in (better, worse):
        assert side.reference_P is not None
        ratio_P = side.sums_P - side.reference_P
        # IPO's difference is one of means, else long answers would decide it.
        is_mean = options.length_normalized or options.loss == "ipo"
        rewards.append(beta * (ratio_P / side.lengths_P if is_mean else ratio_P))
    scaled_P = rewards[0] - rewards[1]
    if options.loss == "ipo":
        return (scaled_P / beta - 1 / (2 * beta)) ** 2, rewards
    if options.loss == "hinge":
        return torch.relu(1 - scaled_P), rewards
    smoothing = options.label_smoothing
    return -(1 - smoothing) * F.logsigmoid(scaled_P) - smoothing * F.logsigmoid(-scaled_P), rewards


def _compute_log_odds(logs_P: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of probabilities given by their logarithm."""
    return logs_P - torch.log1p(-logs_P.exp())
