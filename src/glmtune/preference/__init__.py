"""Preference tuning: losses of good and bad answers to the same question, and reward models."""

from __future__ import annotations

from glmtune.config import RunConfig
from glmtune.preference.kto_objective import KtoObjective
from glmtune.preference.pair_objective import PreferenceObjective
from glmtune.preference.reward_model import RewardModel, load_reward_model
from glmtune.preference.reward_objective import RewardObjective
from glmtune.training.objective import Objective

__all__ = [
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
    """
    if config.stage == "kto":
        return KtoObjective(config)
    return RewardObjective(config) if config.stage == "rm" else PreferenceObjective(config)
