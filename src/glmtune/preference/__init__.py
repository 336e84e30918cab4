"""Preference tuning: losses of good and bad answers to the same question, given or generated, and reward models."""

from __future__ import annotations

from glmtune.config import RunConfig
from glmtune.preference.grpo_objective import GrpoObjective
from glmtune.preference.kto_objective import KtoObjective
from glmtune.preference.pair_objective import PreferenceObjective
from glmtune.preference.reward_model import RewardModel, load_reward_model
from glmtune.preference.reward_objective import RewardObjective
from glmtune.training.objective import Objective

__all__ = [
    "GrpoObjective",
    "KtoObjective",
    "PreferenceObjective",
    "RewardModel",
    "RewardObjective",
    "load_reward_model",
    "make_objective",
]


def make_objective(config: RunConfig) -> Objective:
    """What the steps of a run minimise.

    Args:
        config: of the run; its stage is not `sft`.

    Raises:
        ConfigError: a reward of stage grpo that cannot be loaded.
    """
    if config.stage == "grpo":
        return GrpoObjective(config)
    if config.stage == "kto":
        return KtoObjective(config)
    return RewardObjective(config) if config.stage == "rm" else PreferenceObjective(config)
