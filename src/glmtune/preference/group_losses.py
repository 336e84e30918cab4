"""Advantages and losses of groups of answers to the same question.

Shapes: Q questions, G answers to each, N tokens of answers.

Sources: GRPO (Shao et al., DeepSeekMath, arXiv 2402.03300, equations 3 and 4), Dr. GRPO (arXiv 2503.20783), DAPO
(arXiv 2503.14476, with a clip range of its own for rises); names and constants as in TRL's `GRPOTrainer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from glmtune.config import GrpoConfig

# Added to a standard deviation before it divides, as in TRL.
_EPSILON = 1e-4


@dataclass
class Advantages:
    """What the rewards of a step say about its answers.

    Attributes:
        values_QG: how much better an answer is than the others to its question; 0 for answers without a reward.
        stds_Q: standard deviation of the rewards to a question; 0 where fewer than two have one.
    """

    values_QG: torch.Tensor
    stds_Q: torch.Tensor


def combine_rewards(rewards_QGF: torch.Tensor, weights_F: torch.Tensor) -> torch.Tensor:
    """Weighted sums (Q, G) over F rewards; NaN stands for none, and a sum of none is NaN."""
    sums_QG = (rewards_QGF * weights_F).nansum(-1)
    return sums_QG.masked_fill(rewards_QGF.isnan().all(-1), torch.nan)


def compute_advantages(rewards_QG: torch.Tensor, scale: str, batch_std: float = 0.0) -> Advantages:
    """Compare each reward with the mean of those to the same question.

    Args:
        rewards_QG: in fp64; NaN for answers without a reward, which count for nothing.
        scale: `grpo.scale_rewards`: what differences are divided by.
        batch_std: standard deviation of all rewards of the step, for scale `batch`.
    """
    differences_QG = rewards_QG - rewards_QG.nanmean(1, keepdim=True)
    counts_Q = (~rewards_QG.isnan()).sum(1)
    # With Bessel's correction, as `torch.std` has it.
    variances_Q = differences_QG.square().nansum(1) / (counts_Q - 1).clamp(min=1)
    stds_Q = variances_Q.sqrt()
    values_QG = differences_QG.nan_to_num(0.0)
    if scale != "none":
        values_QG = values_QG / ((stds_Q[:, None] if scale == "group" else batch_std) + _EPSILON)
    # A mean of equal numbers may differ from them by rounding, which a tiny divisor would blow up.
    is_equal_Q = stds_Q <= 1e-9 * rewards_QG.abs().nan_to_num(0.0).amax(1)
    return Advantages(values_QG.masked_fill(is_equal_Q[:, None], 0.0), stds_Q.masked_fill(is_equal_Q, 0.0))


def compute_answer_weights(
    lengths: Sequence[Sequence[int]], options: GrpoConfig, all_answers: int, all_tokens: int, all_batches: int
) -> list[list[float]]:
    """Weights of the sums of token losses of answers, for a loss that is the mean over the answers of a step.

    Args:
        lengths: tokens of the answers of each micro-batch of this process; 0 for those that are left out of the loss.
        options: of the run.
        all_answers: of the step, in all processes.
        all_tokens: of these answers, without those left out.
        all_batches: micro-batches of the step with answers, in all processes.
    """

    def weigh(length: int, batch_tokens: int) -> float:
        if not length:
            return 0.0
        if options.loss_type == "grpo":
            return 1 / length
        if options.loss_type == "dr_grpo":
            return 1 / options.max_completion_length
        if options.loss_type == "bnpo":
            return all_answers / (all_batches * batch_tokens)
        return all_answers / all_tokens

    return [[weigh(length, sum(batch)) for length in batch] for batch in lengths]


@dataclass
class TokenLosses:
    """Losses of tokens.

    Attributes:
        losses_N: to minimise.
        divergences_N: estimates of the KL divergence from the reference, without gradient; None without a reference.
        is_clipped_N: whether the gradient of the policy is cut off.
    """

    losses_N: torch.Tensor
    divergences_N: torch.Tensor | None
    is_clipped_N: torch.Tensor


def compute_token_losses(
    logps_N: torch.Tensor,
    old_logps_N: torch.Tensor | None,
    reference_logps_N: torch.Tensor | None,
    advantages_N: torch.Tensor,
    options: GrpoConfig,
) -> TokenLosses:
    """Compute the clipped loss of every token, with its KL penalty.

    Args:
        logps_N: log-probabilities of the tokens.
        old_logps_N: those when the answers were sampled; None: they are the present ones.
        reference_logps_N: those of the model before training, if `beta` is not 0.
        advantages_N: of the answers that the tokens belong to.
        options: of the run.
    """
    high = options.epsilon if options.epsilon_high is None else options.epsilon_high
    ratios_N = (logps_N - (logps_N.detach() if old_logps_N is None else old_logps_N)).exp()
    clipped_N = ratios_N.clamp(1 - options.epsilon, 1 + high)
    losses_N = -torch.minimum(ratios_N * advantages_N, clipped_N * advantages_N)
    is_clipped_N = (ratios_N < 1 - options.epsilon) & (advantages_N < 0)
    is_clipped_N = is_clipped_N | ((ratios_N > 1 + high) & (advantages_N > 0))
    if reference_logps_N is None:
        return TokenLosses(losses_N, None, is_clipped_N)
    # The estimator k3 (joschu.net/blog/kl-approx.html): unbiased, and never negative.
    log_ratios_N = reference_logps_N - logps_N
    divergences_N = log_ratios_N.exp() - log_ratios_N - 1
    return TokenLosses(losses_N + options.beta * divergences_N, divergences_N.detach(), is_clipped_N)
