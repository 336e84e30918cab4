"""Preference tuning: losses of a better and a worse answer to the same question."""

from glmtune.preference.pair_objective import PreferenceObjective

__all__ = ["PreferenceObjective"]
