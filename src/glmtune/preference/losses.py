"""Losses of pairs and of labelled answers, from the log-probabilities or the rewards of answers.

Shapes: P pairs; for KTO, P answers.

Sources: DPO (arXiv 2305.18290, equation 7), its label smoothing (conservative DPO, ericmitchell.ai/cdpo.pdf), IPO
(arXiv 2310.12036, equation 17), hinge (SLiC-HF, arXiv 2305.10425), RPO (arXiv 2404.19733), ORPO (arXiv 2403.07691),
SimPO (arXiv 2405.14734), KTO (arXiv 2402.01306, equation 7), Bradley-Terry with a margin (arXiv 2307.09288, equation
2) and centred rewards (arXiv 2312.09244).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from glmtune.config import PreferenceConfig

_LEAST_DOUBT = -1e-7
"""Largest log-probability that has odds: fp32 rounds those nearer to 0."""


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


@dataclass
class LabelledLosses:
    """Losses and implicit rewards of answers with a label.

    Attributes:
        losses_P: to minimise.
        rewards_P: of the answers, without gradient.
        is_right_P: 1 for answers on their side of the reference point: good ones above it, bad ones below; 0.5 on it.
    """

    losses_P: torch.Tensor
    rewards_P: torch.Tensor
    is_right_P: torch.Tensor


def compute_kto_losses(
    answers: AnswerScores, is_good_P: torch.Tensor, kl: torch.Tensor, options: PreferenceConfig
) -> LabelledLosses:
    """Compute KTO's loss of every answer.

    Args:
        answers: with their log-probabilities under the reference.
        is_good_P: the labels.
        kl: the estimate of the KL divergence from the reference, at least 0, without gradient.
        options: of the losses.
    """
    assert answers.reference_P is not None
    ratios_P = answers.sums_P - answers.reference_P
    goods_P = is_good_P.to(ratios_P.dtype)
    sides_P = 2 * goods_P - 1
    # 1 - sigmoid(x), without its rounding to 0.
    distances_P = torch.sigmoid(-options.beta * sides_P * (ratios_P - kl))
    weights_P = options.desirable_weight * goods_P + options.undesirable_weight * (1 - goods_P)
    losses_P = weights_P * distances_P
    if options.sft_weight:
        losses_P = losses_P - options.sft_weight * answers.means_P * goods_P
    return LabelledLosses(
        losses_P, options.beta * ratios_P.detach(), (1 + sides_P * (ratios_P.detach() - kl).sign()) / 2
    )


def compute_reward_losses(
    better_P: torch.Tensor, worse_P: torch.Tensor, margins_P: torch.Tensor, options: PreferenceConfig
) -> torch.Tensor:
    """Compute the Bradley-Terry loss (P,) of every pair.

    Args:
        better_P: rewards of the preferred answers.
        worse_P: of the others.
        margins_P: that the better reward should have over the other; 0 without.
        options: of the losses.
    """
    losses_P = -F.logsigmoid(better_P - worse_P - margins_P)
    if options.center_rewards:
        losses_P = losses_P + options.center_rewards * (better_P + worse_P) ** 2
    return losses_P


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
    # A short answer that is certain has a probability of 1 in fp32, and infinite odds with a gradient of NaN.
    logs_P = logs_P.clamp(max=_LEAST_DOUBT)
    return logs_P - torch.log1p(-logs_P.exp())
