"""Preference tuning: losses of answers that are better or worse than others, given or generated."""

from glmtune.config import RunConfig
from glmtune.preference.grpo_objective import GrpoObjective
from glmtune.preference.pair_objective import PreferenceObjective
from glmtune.training.objective import Objective

__all__ = ["GrpoObjective", "PreferenceObjective", "make_objective"]


def make_objective(config: RunConfig) -> Objective:
    """Make the objective of a stage other than sft.

    Raises:
        ConfigError: a reward that cannot be loaded.
    """
    if config.stage == "grpo":
        return GrpoObjective(config)
    return PreferenceObjective(config)
